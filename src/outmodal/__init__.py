"""outmodal pretrains encoders for new modalities against frozen encoders of known ones."""

__version__ = "0.1.0"
