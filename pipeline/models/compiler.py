"""What torch.compile needs of a machine."""

import os
import shutil
import socket

from ..errors import TrainingError


def check_compiler(key: str) -> None:
    """TrainingError where torch.compile would look for a C++ compiler in vain, which it says at great length.

    key: of the configuration, which asks for it.
    """
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        raise TrainingError(
            f"{key}: no C++ compiler on {socket.gethostname()} ({', '.join(names)}); install g++ on every worker, or "
            f"set {key}=false"
        )
