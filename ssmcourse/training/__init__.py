"""Training: a language model from a configuration, resumable at any moment. Loaded on first use.

`ssmcourse train CONFIG.toml` on the command line, `train(load_config(path))` in Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmcourse import lazy

if TYPE_CHECKING:  # what an editor and a type checker see
    from ssmcourse.training.compression import Compression as Compression
    from ssmcourse.training.compression import bits_per_byte as bits_per_byte
    from ssmcourse.training.compression import compare_with_compressors as compare_with_compressors
    from ssmcourse.training.config import Config as Config
    from ssmcourse.training.config import ConfigError as ConfigError
    from ssmcourse.training.config import DataConfig as DataConfig
    from ssmcourse.training.config import TrainingConfig as TrainingConfig
    from ssmcourse.training.config import load_config as load_config
    from ssmcourse.training.errors import TrainingError as TrainingError
    from ssmcourse.training.loop import Trained as Trained
    from ssmcourse.training.loop import train as train
    from ssmcourse.training.plot import LossPlot as LossPlot
    from ssmcourse.training.terminal import Terminal as Terminal

# public name -> the module that defines it
_HOME = {
    "Compression": "compression",
    "Config": "config",
    "ConfigError": "config",
    "DataConfig": "config",
    "LossPlot": "plot",
    "Terminal": "terminal",
    "Trained": "loop",
    "TrainingConfig": "config",
    "TrainingError": "errors",
    "bits_per_byte": "compression",
    "compare_with_compressors": "compression",
    "load_config": "config",
    "train": "loop",
}

__getattr__, __dir__ = lazy.names(__name__, _HOME)
