"""What is known about anatomy before any image is seen."""

from tutelage.priors.settings import PriorsSettings
from tutelage.priors.shelf import read

__all__ = ["PriorsSettings", "read"]
