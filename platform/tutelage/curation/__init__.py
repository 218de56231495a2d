"""Which answers to believe."""

from tutelage.curation.rules import curate
from tutelage.curation.settings import CurationSettings

__all__ = ["CurationSettings", "curate"]
