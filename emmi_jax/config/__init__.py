"""Every configuration, declared once: models, training, data, jobs; `base` has what they share."""

from emmi_jax.config.base import Config as Config
from emmi_jax.config.base import FrozenMapping as FrozenMapping
from emmi_jax.config.checks import check_choice as check_choice
from emmi_jax.config.checks import check_count as check_count
from emmi_jax.config.data import DEFAULT_SELECTION as DEFAULT_SELECTION
from emmi_jax.config.data import FoamOptions as FoamOptions
from emmi_jax.config.data import FoamSelection as FoamSelection
from emmi_jax.config.data import Method as Method
from emmi_jax.config.data import Sampling as Sampling
from emmi_jax.config.implementations import IMPLEMENTATIONS as IMPLEMENTATIONS
from emmi_jax.config.layers import INIT_WEIGHTS as INIT_WEIGHTS
from emmi_jax.config.layers import NORMS as NORMS
from emmi_jax.config.layers import AnchorAttentionConfig as AnchorAttentionConfig
from emmi_jax.config.layers import AttentionConfig as AttentionConfig
from emmi_jax.config.layers import NumericsConfig as NumericsConfig
from emmi_jax.config.layers import SupernodePoolingConfig as SupernodePoolingConfig
from emmi_jax.config.model import AbUptConfig as AbUptConfig
from emmi_jax.config.train_job import DeviceOptions as DeviceOptions
from emmi_jax.config.train_job import LoggingOptions as LoggingOptions
from emmi_jax.config.train_job import TrainJob as TrainJob
from emmi_jax.config.training import OptimizerSettings as OptimizerSettings
from emmi_jax.config.training import TrainSettings as TrainSettings
