import pytest


@pytest.fixture(autouse=True, scope="module")
def coarse_pictures():
    """Pictures of few pixels take little time; tests/plots has the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emmi_jax.plots.panels._DOTS_PER_INCH", 20)
        yield
