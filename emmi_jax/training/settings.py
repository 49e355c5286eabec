"""The settings of a run, and the model that they ask for."""

from emmi_jax.config import TrainSettings as TrainSettings
from emmi_jax.training.plan import model_config as model_config
