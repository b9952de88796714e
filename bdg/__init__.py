"""BDG: one diffusion model that learns to tell degradations apart, to bridge them, and to restore."""

__version__ = "0.1.0"
