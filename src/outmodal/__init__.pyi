from outmodal.errors import UserError as UserError
from outmodal.models.encoder import Encoder as Encoder
from outmodal.models.encoder import Guesses as Guesses
from outmodal.models.encoder import load as load

__version__: str
__all__ = ["Encoder", "Guesses", "UserError", "__version__", "load"]
