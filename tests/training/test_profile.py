import pytest

from emmi_jax.training.profile import traced


@pytest.mark.parametrize("num_steps", [30, 12])
def test_a_trace_is_written_even_if_training_ends_within_it(num_steps, tmp_path):
    assert list(traced(range(num_steps), tmp_path)) == list(range(num_steps))
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
