"""Invert Image to Noise."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..sparse_core.hosts.comfyui import invert_latent
from .types import EDIT


class InvertImage(io.ComfyNode):
    """A picture back to its noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Invert",
            display_name="Invert Image to Noise",
            category=EDIT,
            description="Finds the noise from which the model draws a picture that you have. Draw from it again with another "
            "prompt, and the picture changes where the prompt does. Dictionaries on the model take part, with all controls.",
            search_aliases=["sparse atoms", "ddim inversion", "unsampler", "edit"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to draw with again, after Apply Sparse Dictionary if a dictionary is to take part: what it "
                    "knows of the picture comes back more exactly.",
                ),
                io.Latent.Input("latent", tooltip="The picture to come back to, through VAE Encode."),
                io.Conditioning.Input(
                    "positive", tooltip="What the picture shows. The closer, the better it comes back."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt; matters where cfg is not 1."),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="The steps you will draw with. Other numbers come back less exactly.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="1 comes back most exactly. Draw with 1 to get the picture itself, with 2 to 4 to let a new prompt "
                    "change it more.",
                ),
                io.Int.Input(
                    "refinements",
                    default=3,
                    min=0,
                    max=20,
                    tooltip="How often each step is improved. More come back more exactly and take longer. 0 is plain DDIM.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For KSampler (Advanced) with add_noise off. Not for flow models."
                ),
                io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced, with an empty latent."),
                io.String.Output(display_name="report"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, latent: dict, positive: list, negative: list, steps: int, cfg: float, refinements: int
    ) -> io.NodeOutput:
        bar = ProgressBar(2 * steps)
        found = invert_latent(model, latent, positive, negative, steps, cfg, refinements, lambda: bar.update(1))
        return io.NodeOutput(found.latent, found.noise, found.report, ui=ui.PreviewText(found.report))
