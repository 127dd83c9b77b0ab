"""The bundled demo model: a picture-book world, the small latent-diffusion model trained on it, and its judge."""
