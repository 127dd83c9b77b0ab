"""Atom addresses: printing and parsing, what they pick, and what errors say."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_core.addresses import (
    ALL,
    DEEPEST,
    LARGEST,
    AddressError,
    And,
    Everything,
    Label,
    Layers,
    Line,
    Not,
    Or,
    Part,
    Region,
    Selection,
    Top,
    TopShare,
    parse_lines,
    parse_selection,
)
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.layers import PROJECTIONS, Layer, Site

PAGE = Path(__file__).parents[2] / "docs" / "addresses.md"
STAGES = ("down.0.0", "down.0.1", "middle.0.0", "up.0.0", "up.0.1")
NAMES = [f"{stage}.{attention}" for stage in STAGES for attention in ("attn1", "attn2")]
WORDS = ("red roof", "Red Roof", "roof", "red", "a [b]", "ROT", "*", "what?")


def make_atoms(importance: list[float]) -> Atoms:
    m = len(importance)
    ones = torch.ones(m)
    return Atoms(torch.ones(m, 2), ones, ones, torch.ones(m, 2), torch.tensor(importance, dtype=torch.float32))


def make_dictionary(
    sizes: dict[str, int], layers: int = 10, labels: dict[str, str] | None = None, importance: float = 0.0
) -> SparseDictionary:
    """Sites as text, e.g. ``{"L3.v": 16}``, in a model of up to 10 layers."""
    sites = {
        Site(int(name[1:].split(".")[0]), name.split(".")[1]): make_atoms([importance] * m) for name, m in sizes.items()
    }
    return SparseDictionary(tuple(Layer(name, 2, 2, 2) for name in NAMES[:layers]), sites, {"labels": labels or {}})


def spans(largest: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, largest), st.integers(0, largest)).map(lambda pair: (min(pair), max(pair)))


def selections(largest: int, labels: st.SearchStrategy[str]) -> st.SearchStrategy[Selection]:
    where = spans(largest).map(lambda span: Layers(*span)) | st.sampled_from(
        [Part(name) for name in ("attn1", "attn2", "down", "middle", "up")]
    )
    sites = st.lists(st.sampled_from(PROJECTIONS), min_size=1).map(tuple)
    atoms = st.none() | st.lists(spans(largest), min_size=1, max_size=4).map(tuple)
    leaves = st.one_of(
        st.just(ALL),
        st.builds(Region, where, sites, atoms),
        st.builds(Top, st.integers(1, max(1, largest))),
        st.builds(TopShare, st.floats(0, 100, exclude_min=True)),
        st.builds(Label, labels),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            inner.map(Not),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: And(tuple(parts))),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: Or(tuple(parts))),
        ),
        max_leaves=8,
    )


any_selection = selections(LARGEST, st.text())
any_line = st.one_of(
    st.builds(
        Line,
        st.just(1),
        any_selection,
        st.sampled_from(["set", "scale"]),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    st.builds(Line, st.just(1), any_selection, st.sampled_from(["mute", "solo"])),
)


@st.composite
def dictionaries(draw: st.DrawFn) -> SparseDictionary:
    layers = tuple(Layer(name, 2, 2, 2) for name in NAMES[: draw(st.integers(1, len(NAMES)))])
    possible = [Site(number, projection) for number in range(len(layers)) for projection in PROJECTIONS]
    sites = draw(
        # Few different importances, so that ties are common.
        st.dictionaries(
            st.sampled_from(possible), st.lists(st.integers(0, 3).map(float), max_size=5).map(make_atoms), max_size=8
        )
    )
    places = [f"{site}[{j}]" for site, atoms in sites.items() for j in range(len(atoms))] + ["L0[0-2]", "L99.v[0]"]
    labels = draw(st.dictionaries(st.sampled_from(places), st.sampled_from(WORDS), max_size=4))
    return SparseDictionary(layers, sites, {"labels": labels})


def matches(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return matches(pattern[1:], text) or (text != "" and matches(pattern, text[1:]))
    return text != "" and pattern[0] in (text[0], "?") and matches(pattern[1:], text[1:])


def brute_force(selection: Selection, dictionary: SparseDictionary) -> set[tuple[Site, int]]:
    """What a selection means, atom by atom."""
    everything = [(site, j) for site, atoms in dictionary.sites.items() for j in range(len(atoms))]
    match selection:
        case Everything():
            return set(everything)
        case Region(where, sites, atoms):
            return {
                (site, j)
                for site, j in everything
                if (
                    where.first <= site.layer <= where.last
                    if isinstance(where, Layers)
                    else where.name in dictionary.layers[site.layer].name.split(".")
                )
                and site.projection in sites
                and (atoms is None or any(first <= j <= last for first, last in atoms))
            }
        case Top() | TopShare():
            ranked = sorted(everything, key=lambda atom: -dictionary.sites[atom[0]].importance[atom[1]].item())
            if isinstance(selection, Top):
                return set(ranked[: selection.count])
            share = Fraction(str(selection.percent)) / 100
            return {atom for place, atom in enumerate(ranked) if place < share * len(ranked)}
        case Label(pattern):
            return {
                atom
                for address, label in dictionary.labels.items()
                if matches(pattern.lower(), label.lower())
                for atom in brute_force(parse_selection(address), dictionary)
            }
        case Not(operand):
            return set(everything) - brute_force(operand, dictionary)
        case And(parts):
            return set.intersection(*(brute_force(part, dictionary) for part in parts))
        case Or(parts):
            return set.union(*(brute_force(part, dictionary) for part in parts))
    raise AssertionError(selection)


def picked(text: str, dictionary: SparseDictionary) -> set[str]:
    masks = parse_selection(text).resolve(dictionary)
    return {f"{site}[{j}]" for site, mask in masks.items() for j in mask.nonzero().flatten().tolist()}


class TestPrinting:
    @given(any_selection)
    def test_printed_selection_parses_to_the_same(self, selection: Selection) -> None:
        assert parse_selection(str(selection)) == selection

    @given(st.lists(any_line, max_size=5))
    def test_printed_lines_parse_to_the_same(self, lines: list[Line]) -> None:
        parsed = parse_lines("\n".join(map(str, lines)))
        assert parsed == lines
        assert [line.number for line in parsed] == list(range(1, len(lines) + 1))

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            (" * ", "*"),
            ("L17[*]", "L17"),
            ("l017 . V [ 137 ]", "L17.v[137]"),
            ("L5-L5", "L5"),
            ("L3 - l9 .KQ[12, 0-7,8 , 5]", "L3-L9.qk[0-8,12]"),
            ("L3.ovkq[*]", "L3"),
            ("ATTN2.v[*]", "attn2.v"),
            ("Middle.q[0-3]", "middle.q[0-3]"),
            ("TOP : 0032", "top:32"),
            ("top:25.00 %", "top:25%"),
            ("top:1e-7%", "top:1e-07%"),
            (r'Label:"Red \"\u0072oof\" \\ é#\n"', r'label:"Red \"roof\" \\ é#\n"'),
            ("NOT up&!down|not not L3", "!up & !down | !!L3"),
            ("(attn1)", "attn1"),
            ("L1 | (L2 | L3) | L4", "L1 | L2 | L3 | L4"),
            ("L1 & (L2 | L3) & !(L4 & L5)", "L1 & (L2 | L3) & !(L4 & L5)"),
            ("L1\n| # first\n L2", "L1 | L2"),
        ],
    )
    def test_canonical_text(self, text: str, canonical: str) -> None:
        assert str(parse_selection(text)) == canonical

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("L1=1", "L1 = 1"),
            ("*=.5", "* = 0.5"),
            ("* *= -50 %", "* *= -0.5"),
            ("L1 = 7%", "L1 = 0.07"),
            ("L1 = 1e22", "L1 = 1e+22"),
            ("L1 = 0.1000", "L1 = 0.1"),
            ("MUTE not L1", "mute !L1"),
            ("solo(L1)", "solo L1"),
        ],
    )
    def test_canonical_lines(self, text: str, canonical: str) -> None:
        (line,) = parse_lines(text)
        assert str(line) == canonical

    def test_unprintable_characters_of_a_label_are_escaped(self) -> None:
        text = str(Label("a\x1b\u202eb\x7f\U000e0001"))
        assert text.isprintable()
        assert parse_selection(text) == Label("a\x1b\u202eb\x7f\U000e0001")


class TestLines:
    def test_comments_and_blank_lines_are_left_out_but_counted(self) -> None:
        text = '# all\r\n\r\nL1 = 1 # one\r  \t\nlabel:"#1" *= 2#two\n#'
        lines = parse_lines(text)
        assert lines == [
            Line(1, parse_selection("L1"), "set", 1.0),
            Line(1, Label("#1"), "scale", 2.0),
        ]
        assert [line.number for line in lines] == [3, 5]

    def test_no_lines(self) -> None:
        assert parse_lines("") == parse_lines("\n # nothing\n") == []

    @pytest.mark.parametrize("arguments", [("set", None), ("mute", 0.0), ("set", float("inf")), ("add", 1.0)])
    def test_impossible_lines_cannot_be_made(self, arguments: tuple) -> None:
        with pytest.raises(AddressError):
            Line(1, ALL, *arguments)


class TestResolving:
    @given(selections(9, st.sampled_from([*WORDS, "red*", "R*", "?o*", "a [?]", "[ab]*", "*"])), dictionaries())
    @settings(max_examples=300)
    def test_equals_brute_force(self, selection: Selection, dictionary: SparseDictionary) -> None:
        expected = brute_force(selection, dictionary)
        if not expected:
            with pytest.raises(AddressError, match="picks no atom"):
                selection.resolve(dictionary)
            return
        masks = selection.resolve(dictionary)
        assert list(masks) == list(dictionary.sites)
        for site, mask in masks.items():
            assert mask.dtype == torch.bool
            assert mask.tolist() == [(site, j) in expected for j in range(len(dictionary.sites[site]))]

    def test_a_share_is_rounded_up_exactly(self) -> None:
        dictionary = make_dictionary({"L0.q": 25})
        assert 0.28 * 25 > 7
        assert len(picked("top:28%", dictionary)) == 7
        assert len(picked("top:28.1%", dictionary)) == 8
        assert len(picked("top:0.001%", dictionary)) == 1

    def test_top_counts_over_all_sites_and_ties_go_by_order(self) -> None:
        sites = {Site(1, "q"): make_atoms([1, 3]), Site(0, "v"): make_atoms([2, 1, 1])}
        dictionary = SparseDictionary(tuple(Layer(name, 2, 2, 2) for name in NAMES), sites)
        assert picked("top:3", dictionary) == {"L1.q[1]", "L0.v[0]", "L0.v[1]"}
        assert len(picked("top:99", dictionary)) == 5

    def test_half_precision_importance(self) -> None:
        dictionary = make_dictionary({"L0.q": 3}, importance=1.0).map(lambda atoms: atoms.map(torch.Tensor.half))
        assert picked("top:2", dictionary) == {"L0.q[0]", "L0.q[1]"}

    def test_precedence(self) -> None:
        dictionary = make_dictionary({"L0.q": 1, "L1.q": 1, "L2.q": 1})
        assert picked("L0 | L1 & L2", dictionary) == {"L0.q[0]"}
        assert picked("!L0 & L1 | L2", dictionary) == {"L1.q[0]", "L2.q[0]"}


class TestWhyNothingIsPicked:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("L40", "L40 picks no atom: L40 does not exist: layers L0 to L9."),
            ("L40-L50.v", "L40-L50 do not exist: layers L0 to L9."),
            ("L3.v[137]", "L3.v has atoms 0 to 15, not 137."),
            ("L3-L9.v[20-30,137]", "L3-L9.v has atoms 0 to 15, not 20-30,137."),
            ("L4.q[1]", "L4.q has only atom 0, not 1."),
            ("L3.qk", "L3.qk has no atoms: they are in L3.v, L4.q."),
            ("L5", "L5 has no atoms: they are in L3.v, L4.q."),
            ("up", "up has no atoms: they are in L3.v, L4.q."),
            ('label:"red rof"', "no label 'red rof'; labels: 'red roof', 'wheel'."),
            ('label:"WHEEL"', "label 'WHEEL' is on atoms that the dictionary does not have."),
            ("L3 & L40", "L40 does not exist: layers L0 to L9."),
            ("L3 & L4", "its parts have no atom in common."),
            ("L40 | L5", "L40 does not exist: layers L0 to L9; L5 has no atoms: they are in L3.v, L4.q."),
            ("!(L3 | L4)", "L3 | L4 is all that the dictionary has."),
        ],
    )
    def test_message(self, text: str, reason: str) -> None:
        dictionary = make_dictionary({"L3.v": 16, "L4.q": 1}, labels={"L3.v[0]": "red roof", "L3.v[99]": "wheel"})
        with pytest.raises(AddressError) as caught:
            parse_selection(text).resolve(dictionary)
        assert str(caught.value).startswith(f"{parse_selection(text)} picks no atom: ")
        assert str(caught.value).endswith(reason)

    def test_a_stage_that_the_model_lacks(self) -> None:
        with pytest.raises(AddressError, match="there is no middle layer: layers are down, attn1, attn2"):
            parse_selection("middle").resolve(make_dictionary({"L0.q": 1}, layers=2))

    def test_no_labels(self) -> None:
        with pytest.raises(AddressError, match="no label 'red'; the dictionary has no labels"):
            parse_selection('label:"red"').resolve(make_dictionary({"L0.q": 1}))

    def test_long_lists_and_long_selections_are_cut(self) -> None:
        dictionary = make_dictionary({"L0.q": 1}, labels={f"L0.q[{j}]": f"label {j:02}" for j in range(20)})
        with pytest.raises(AddressError, match="'label 07', and 12 more") as caught:
            parse_selection(f'label:"{"x" * 5000}"').resolve(dictionary)
        assert len(str(caught.value).split(" picks no atom")[0]) < 120

    @pytest.mark.parametrize("text", ["*", "top:1", "top:50%", "!L0"])
    def test_an_empty_dictionary(self, text: str) -> None:
        for dictionary in (make_dictionary({}), make_dictionary({"L0.q": 0})):
            with pytest.raises(AddressError, match="the dictionary is empty"):
                parse_selection(text).resolve(dictionary)

    @pytest.mark.parametrize("address", ['label:"roof"', "top:3"])
    def test_a_label_on_something_that_is_no_address(self, address: str) -> None:
        dictionary = make_dictionary({"L0.q": 1}, labels={address: "roof"})
        with pytest.raises(AddressError, match=r"'roof' is on .* not an address such as L17"):
            parse_selection('label:"roof"').resolve(dictionary)


class TestMisreading:
    @pytest.mark.parametrize(
        ("text", "column", "problem"),
        [
            ("", 0, "expected a selection such as L17[137], attn2, top:32 or *."),
            ("L17x", 0, "expected a selection such as L17[137], attn2, top:32 or *."),
            ("L3 & ", 4, "expected a selection such as L17[137], attn2, top:32 or *."),
            ("L3-9", 3, "expected a layer such as L17."),
            ("L17.x", 4, "expected one or more of the sites q, k, v and o."),
            ("L17[x]", 4, 'expected an atom number such as 137 or "*".'),
            ("L17[1.5]", 4, 'expected an atom number such as 137 or "*".'),
            ("L17[1-]", 6, "expected an atom number such as 137."),
            ("L17[1", 5, 'expected "-", "," or "]".'),
            ("L17[\uff11]", 4, 'expected an atom number such as 137 or "*".'),
            ("top 3", 4, 'expected ":".'),
            ("top:3.5", 4, "expected a count such as 32 or a percentage such as 50%."),
            ("top:0", 4, "top:0 is not possible: the count goes from 1 to 999999999."),
            ("top:101%", 4, "top:101% is not possible: the share is more than 0% and at most 100%."),
            ("L3 & L9-L3", 5, "L9-L3 runs backwards: write L3-L9."),
            ("L3[9, 7-2]", 6, "7-2 runs backwards: write 2-7."),
            ("L1000000000", 0, "this number is too large: the largest is 999999999."),
            (f"L1[{'9' * 10_000}]", 3, "this number is too large: the largest is 999999999."),
            (r'label:"\ud800"', 6, "this label has half a character in it (a lone surrogate)."),
            ("(L3", 3, 'expected a site such as .v, atoms such as [0-7], "-", ")", "&" or "|".'),
            ("L3)", 2, 'expected a site such as .v, atoms such as [0-7], "-", "&", "|" or nothing more.'),
            ("L3[0] = 0.5", 6, 'expected "&", "|" or nothing more.'),
        ],
    )
    def test_place_and_problem(self, text: str, column: int, problem: str) -> None:
        with pytest.raises(AddressError) as caught:
            parse_selection(text)
        message, shown, caret = str(caught.value).split("\n")
        assert message == f"Not a selection of atoms: {problem}"
        assert shown == f"    {text[: column + 40]}"
        assert caret == " " * (4 + column) + "^"

    @pytest.mark.parametrize("text", ["label:red", 'label:"red', r'label:"\N"', r'label:"\u12"'])
    def test_labels_need_proper_quotes(self, text: str) -> None:
        with pytest.raises(AddressError, match='expected a label in double quotes such as "red roof"'):
            parse_selection(text)

    def test_every_bad_line_is_reported_at_once(self) -> None:
        with pytest.raises(AddressError) as caught:
            parse_lines("L1 = 1\nL2 0.5\n\nL3 = abc # why\nmute\nmute L4 = 0\nL5 = 1e999\nL6 = nan\nL7 = 1 2\n= 3")
        assert str(caught.value) == "\n".join(
            [
                'Line 2: expected "=" and a weight, "*=" and a weight, a site such as .v, atoms such as [0-7], '
                '"-", "&" or "|".',
                "    L2 0.5",
                "       ^",
                "Line 4: expected a number such as 0.5 or a percentage such as 50%.",
                "    L3 = abc # why",
                "         ^",
                "Line 5: expected a selection such as L17[137], attn2, top:32 or *.",
                "    mute",
                "        ^",
                'Line 6: expected a site such as .v, atoms such as [0-7], "-", "&", "|" or nothing more.',
                "    mute L4 = 0",
                "            ^",
                "Line 7: this number is too large: a weight has to be a finite number.",
                "    L5 = 1e999",
                "         ^",
                "Line 8: expected a number such as 0.5 or a percentage such as 50%.",
                "    L6 = nan",
                "         ^",
                "Line 9: expected nothing more.",
                "    L7 = 1 2",
                "           ^",
                'Line 10: expected a selection such as L17[137], attn2, top:32 or *, "mute" or "solo".',
                "    = 3",
                "    ^",
            ]
        )

    def test_only_the_neighbourhood_of_a_long_line_is_shown_without_control_characters(self) -> None:
        with pytest.raises(AddressError) as caught:
            parse_selection("L1 |" * 1000 + "\t\x1b[31m" + "x" * 1000)
        _, shown, caret = str(caught.value).split("\n")
        assert len(shown) <= 104
        assert shown.isprintable()
        assert shown[caret.index("^") :].startswith(" [31m")

    @given(st.text() | st.text('L0123456789.-[],*qkvo&|!()"\\=%:#topmutenabl \t\n', max_size=30))
    @settings(max_examples=500)
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        for parse in (parse_selection, parse_lines):
            try:
                parse(text)
            except AddressError as error:
                assert "^" in str(error)

    @given(any_line, st.data())
    def test_a_mangled_line_is_read_or_refused(self, line: Line, data: st.DataObject) -> None:
        text = str(line)
        start = data.draw(st.integers(0, len(text)))
        mangled = (
            text[:start] + data.draw(st.sampled_from(["", "(", "]", "-", "1", '"', "\\", "!"])) + text[start + 1 :]
        )
        try:
            assert len(parse_lines(mangled)) <= 1
        except AddressError as error:
            assert "Line 1: " in str(error)


class TestLimits:
    def test_nesting(self) -> None:
        deep = "!" * DEEPEST + "L1"
        assert str(parse_selection(deep)) == deep
        for text in (f"!{deep}", f"L2 & {deep}", "!" * 100_000 + "L1", "(L1 & (L2 | " * 5000 + "L3" + "))" * 5000):
            with pytest.raises(AddressError, match="nested more than 50 deep"):
                parse_selection(text)

    def test_parentheses_that_group_nothing_do_not_count(self) -> None:
        assert parse_selection("(" * 5000 + "L1" + ")" * 5000) == parse_selection("L1")

    def test_a_long_alternative_is_flat(self) -> None:
        selection = parse_selection(" | ".join(f"L{j}" for j in range(5000)))
        assert len(selection.parts) == 5000
        assert parse_selection(str(selection)) == selection

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Layers(-1, 3),
            lambda: Layers(0, LARGEST + 1),
            lambda: Region(Layers(0, 0), ()),
            lambda: Region(Layers(0, 0), ("x",)),
            lambda: Region(Layers(0, 0), atoms=()),
            lambda: Region(Layers(0, 0), atoms=((3, 2),)),
            lambda: Top(0),
            lambda: TopShare(float("nan")),
            lambda: And((ALL,)),
        ],
    )
    def test_impossible_selections_cannot_be_made(self, make) -> None:
        with pytest.raises(AddressError):
            make()

    def test_ten_thousand_lines_good_or_bad_are_read_quickly(self) -> None:
        good = "\n".join(f"L{j % 30}.v[{j}] = {j / 7}" for j in range(10_000))
        start = time.process_time()
        assert len(parse_lines(good)) == 10_000
        with pytest.raises(AddressError, match="Line 10000: "):
            parse_lines(good.replace("]", ""))
        # About a second on one slow core; the bound is for an algorithm gone quadratic.
        assert time.process_time() - start < 10

    def test_thousands_of_labels_on_hundreds_of_layers_are_found_quickly(self) -> None:
        layers = tuple(Layer(f"down.0.{n}.attn1", 2, 2, 2) for n in range(250))
        sites = {Site(n, p): make_atoms([0.0] * 8) for n in range(250) for p in PROJECTIONS}
        labels = {f"{site}[{j}]": f"part {j}" for site in sites for j in range(8)}
        dictionary = SparseDictionary(layers, sites, {"labels": labels})
        start = time.process_time()
        masks = Label("part ?").resolve(dictionary)
        assert all(bool(mask.all()) for mask in masks.values())
        # A third of a second on one slow core; the bound is for an algorithm gone quadratic.
        assert time.process_time() - start < 6


class TestPage:
    """docs/addresses.md: what it shows is so."""

    def test_every_form_in_the_table_parses(self) -> None:
        section = PAGE.read_text("utf-8").split("## What you can write")[1].split("##")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        forms = [form.replace("\\|", "|") for row in rows for form in re.findall(r"`([^`]+)`", row)]
        assert len(forms) > len(rows) > 15
        for form in forms:
            parse_selection(re.sub(r"\b[ab]\b", "L1", form))

    def test_example_lines_parse(self) -> None:
        (example,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        assert [line.operation for line in parse_lines(example)] == ["set", "scale", "set", "mute", "solo"]

    def test_messages_are_the_real_ones(self) -> None:
        misread, unresolved = re.findall(r"```text\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        with pytest.raises(AddressError) as caught:
            parse_lines("\nL17[red] = 0.5\n\nmiddle = loud")
        assert str(caught.value) == misread.rstrip("\n")
        layers = tuple(Layer(f"down.{j}.0.attn1", 2, 2, 2) for j in range(32))
        labels = {"L3.v[0]": "red roof", "L3.v[1]": "wheel"}
        dictionary = SparseDictionary(layers, {Site(3, "v"): make_atoms([0.0] * 16)}, {"labels": labels})
        for message in unresolved.splitlines():
            with pytest.raises(AddressError, match=re.escape(message)):
                parse_selection(message.split(" picks no atom")[0]).resolve(dictionary)
