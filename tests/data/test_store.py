import json
from pathlib import Path

import jax
import numpy as np
import pytest

from emmi_jax.config import Sampling
from emmi_jax.data import store as store_module
from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.case_split import draw_split
from emmi_jax.data.cases import Case
from emmi_jax.data.statistics import measure, merge, point_chunks
from emmi_jax.data.store import Store, write_case
from emmi_jax.data.stored_case import STORE_FILE, VERSION
from emmi_jax.files import zarr
from emmi_jax.files.atomic import sealed, unsealed
from emmi_jax.files.zarr import ArrayFolder
from emmi_jax.meshes.cells import POSITIONS
from emmi_jax.points import PointSet

SAMPLING = Sampling(
    num_anchors=6, num_queries=4, num_test_anchors=8, num_geometry_points=12, num_supernodes=3, num_test_supernodes=4
)
NAMES = ["run_1", "cars/run_2", "run_3"]


def make_case(number: int, *, with_geometry: bool = True) -> Case:
    """A case whose fields tell its rows: the pressure is the number of the point."""
    rng, points = np.random.default_rng(number), {}
    for branch, num_points in (("surface", 40 + number), ("volume", 61 + number)):
        position = rng.normal(size=(num_points, 3))
        fields = {"pressure": np.arange(num_points, dtype=np.float32)[:, None], "vorticity": position * 1e3}
        points[branch] = PointSet(position, fields, np.arange(1, num_points + 1) if branch == "surface" else None)
    return Case(points, rng.normal(size=(30, 3)) if with_geometry else None)


def make_store(path: Path, dtype: str = "float32", *, with_geometry: bool = True) -> Store:
    folder = ArrayFolder(str(path))
    head = {"version": VERSION, "positions": POSITIONS, "dtype": dtype, "cases": list(NAMES), "sources": {}}
    folder.write_json(STORE_FILE, head)
    for number, name in enumerate(NAMES):
        case = make_case(number, with_geometry=with_geometry)
        write_case(folder, name, case, dtype=dtype, source=f"files of {name}")
    return Store(str(path))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(zarr, "CHUNK_ROWS", 8)
    monkeypatch.setattr(store_module, "CHUNK_ROWS", 8)
    monkeypatch.setattr(zarr, "SHARD_CHUNKS", 2)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float16", 5e-4)])
def test_a_case_comes_back_permuted(dtype, tolerance, tmp_path):
    stored, case = make_store(tmp_path, dtype).read("cars/run_2"), make_case(1)
    for branch, points in stored.points.items():
        expected, idx = case.points[branch], points.fields["pressure"][:, 0].astype(int)
        assert sorted(idx) == list(range(len(expected.position)))
        assert list(idx) != sorted(idx)
        np.testing.assert_allclose(points.position, expected.position[idx], rtol=1e-7)
        np.testing.assert_allclose(points.fields["vorticity"], expected.fields["vorticity"][idx], rtol=tolerance)
        assert {points.position.dtype, points.fields["vorticity"].dtype} == {np.dtype(np.float32)}
    surface = stored.points["surface"]
    np.testing.assert_array_equal(surface.cell_size, surface.fields["pressure"][:, 0] + 1)
    assert stored.points["volume"].cell_size is None
    np.testing.assert_allclose(np.sort(stored.geometry, axis=0), np.sort(case.geometry, axis=0), rtol=1e-6)


def test_statistics_are_exactly_those_of_the_raw_cases(tmp_path):
    store = make_store(tmp_path, "float16")
    raw = merge(measure(point_chunks(make_case(number).points)) for number in range(3))
    stored = merge(map(store.measure, store.names))
    assert stored.normalizer(position_range=1.0) == raw.normalizer(position_range=1.0)


@pytest.mark.usefixtures("small_chunks")
def test_a_part_is_a_run_of_few_rows_in_which_every_point_is_equally_likely(tmp_path):
    store, counts = make_store(tmp_path), np.zeros(41)
    for seed in range(3000):
        case = store.draw("cars/run_2", np.random.default_rng(seed), SAMPLING, 4)
        idx = case.points["surface"].fields["pressure"][:, 0].astype(int)
        assert len(idx) == len(set(idx)) == 4 + 8
        counts[idx] += 1
    assert len(case.points["volume"].position) == 12
    assert len(case.geometry) == 12 + 8
    expected = 3000 * 12 / 41
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.usefixtures("small_chunks")
def test_geometry_points_are_those_of_the_surface_where_there_are_no_others(tmp_path):
    store = make_store(tmp_path, with_geometry=False)
    geometry = store.draw("run_1", np.random.default_rng(0), SAMPLING, 4).geometry
    assert {tuple(x) for x in geometry} <= {tuple(x) for x in store.read("run_1").points["surface"].position}
    assert len(geometry) == 20


def test_points_are_weighted_by_cell_size_if_every_branch_has_sizes(tmp_path):
    store = make_store(tmp_path)
    weighted = Sampling(num_anchors=4, num_queries=0, num_test_anchors=4, method="weighted")
    with pytest.raises(ValueError, match="run_1: volume has no cell sizes to weight its points"):
        store.draw("run_1", np.random.default_rng(0), weighted, 4)


def test_batches_depend_on_seed_and_step_alone_and_test_samples_on_nothing(tmp_path):
    make_store(tmp_path)
    first, second = (
        CaseCollection(draw_split(store.names), store, SAMPLING)
        for store in (Store(str(tmp_path)), Store(str(tmp_path)))
    )
    second.train_sample(0, 0)
    jax.tree.map(np.testing.assert_array_equal, first.train_sample(1, 2), second.train_sample(1, 2))
    jax.tree.map(np.testing.assert_array_equal, list(first.test_samples()), list(second.test_samples()))
    assert first.fields == {branch: {"pressure": 1, "vorticity": 3} for branch in ("surface", "volume")}


def test_an_interrupted_case_leaves_nothing_and_a_store_without_it_is_refused(tmp_path, monkeypatch):
    make_store(tmp_path)
    folder = ArrayFolder(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(ArrayFolder, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_case(folder, "run_3", make_case(2), dtype="float32", source="")
    assert not (tmp_path / "run_3").exists()
    with pytest.raises(ValueError, match="1 of 3 cases are not in the store, 'run_3' is the first"):
        Store(str(tmp_path))


def test_a_field_that_does_not_fit_into_half_precision_is_named(tmp_path):
    case = make_case(0)
    case.points["volume"].fields["pressure"][3] = -7e4
    with pytest.raises(ValueError, match="run_1: volume/pressure reaches 70000, which is too large for float16"):
        write_case(ArrayFolder(str(tmp_path)), "run_1", case, dtype="float16", source="")


def edited(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(sealed(unsealed(values) | changes) if "checksum" in values else values | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "store.json").unlink(), r"no store: it has no store\.json"),
        (lambda p: (p / "store.json").write_text("[]"), r"store\.json: not the list of cases of a store: \[\]"),
        (lambda p: edited(p / "store.json", version=2), "not the list of cases of a store"),
        (
            lambda p: edited(p / "store.json", positions="VTK"),
            "computed by VTK, now they are by .*: prepare the cases",
        ),
        (lambda p: edited(p / "store.json", cases=["../run_1"]), "not the list of cases of a store"),
        (lambda p: edited(p / "store.json", dtype="object"), "not the list of cases of a store"),
        (
            lambda p: edited(p / "run_1/case.json", version=9),
            r"run_1/case\.json: not a case of a store: expected",
        ),
        (lambda p: edited(p / "run_1/case.json", statistics={}), r"not a case of a store: expected statistics"),
        (lambda p: edited(p / "run_1/case.json", forces={"cd": "high"}), "not a case of a store: expected finite cd"),
        (lambda p: edited(p / "run_1/case.json", with_area_vectors=["volume"]), "volume/area_vector/c/0/0: has 0"),
        (
            lambda p: edited(p / "run_1/case.json", branches={"surface": {"num_points": 10**15, "fields": {"p": 1}}}),
            "run_1/case.json: not a case of a store|has 0 bytes|expected",
        ),
        (
            lambda p: (p / "run_1/case.json").write_text((p / "run_1/case.json").read_text().replace("40", "41")),
            r"run_1/case\.json: wrong checksum: prepare the cases again",
        ),
        (lambda p: (p / "run_1/volume/position/c/0/0").unlink(), "volume/position/c/0/0: has 0 bytes, expected"),
        (lambda p: (p / "run_1/geometry/c/0/0").write_bytes(b"x"), "geometry/c/0/0: has 1 bytes, expected"),
    ],
)
def test_a_damaged_store_is_named_when_it_is_opened(damage, message, tmp_path):
    make_store(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        Store(str(tmp_path))
    assert "\n" not in str(error.value)


def test_damage_that_shows_only_in_the_values_is_named_when_they_are_read(tmp_path):
    store = make_store(tmp_path)
    file = tmp_path / "run_1" / "volume" / "fields" / "pressure" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    (tmp_path / "run_1" / "surface" / "position" / "zarr.json").write_text("{}")
    for branch in ("volume/fields/pressure", "surface/position"):
        with pytest.raises(ValueError, match=f"run_1/{branch}: the store is damaged: ") as error:
            store._rows("run_1", branch, 0, 5)()
        assert "\n" not in str(error.value)


@pytest.fixture
def without_zeros(tmp_path, small_chunks):
    """A store whose chunks of zeros another writer of zarr has left out: of one field all, of another all but one."""
    folder = ArrayFolder(str(tmp_path))
    fields = {"none": np.zeros((90, 2)), "one": np.eye(90, 1)}
    head = {"version": VERSION, "positions": POSITIONS, "dtype": "float32", "cases": ["run_1"], "sources": {}}
    folder.write_json(STORE_FILE, head)
    case = Case({"volume": PointSet(np.random.default_rng(0).normal(size=(90, 3)), fields)}, None)
    write_case(folder, "run_1", case, dtype="float32", source="")
    for name, values in fields.items():
        path = f"run_1/volume/fields/{name}"
        array = folder.open_array(path, values.shape, "float32")
        spec = array.spec().to_json() | {"store_data_equal_to_fill_value": False}
        rewritten = zarr.ts.open(spec, open=True).result()
        rewritten.write(array.read().result()).result()
    return tmp_path


def test_chunks_of_zeros_that_another_writer_leaves_out_are_zeros(without_zeros):
    found = [path.parts[-4] for path in without_zeros.glob("run_1/volume/fields/*/c/*/*")]
    assert found == ["one"]
    store = Store(str(without_zeros))
    fields = store.read("run_1").points["volume"].fields
    np.testing.assert_equal(fields["none"], np.zeros((90, 2)))
    assert fields["one"].sum() == 1
    drawn = store.draw("run_1", np.random.default_rng(0), SAMPLING, 20).points["volume"].fields["one"]
    assert len(drawn) == 28


def test_a_lost_chunk_is_found_beside_chunks_of_zeros(without_zeros):
    store = Store(str(without_zeros))
    (lost,) = without_zeros.glob("run_1/volume/fields/one/c/*/*")
    lost.unlink()
    with pytest.raises(ValueError, match="fields/one: the store is damaged"):
        store.read("run_1")
    with pytest.raises(ValueError, match=r"fields/one/c/./0: has 0 bytes"):
        Store(str(without_zeros))
