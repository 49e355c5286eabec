"""The devices of a run: a mesh of `data` × `tokens`, and where each array lies on it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emmi_jax.config import TrainSettings
from emmi_jax.data.samples import Sample

DATA, TOKENS, MEMBER = "data", "tokens", "member"
Tree = TypeVar("Tree")


class Layout(NamedTuple):
    """Request of a run for devices.

    Attributes:
        data: Devices that share the cases of a batch; None means as many as there are and divide the batch.
        tokens: Devices that share the tokens of a case.
        fsdp: Whether parameters, their average and the optimiser's state are sharded too, over all devices.
    """

    data: int | None = None
    tokens: int = 1
    fsdp: bool = False

    @classmethod
    def parse(cls, mesh: str | None, *, fsdp: bool = False) -> Self:
        """Returns the layout of a text such as "data=4,tokens=2"; either may be left out.

        Raises:
            ValueError: It is not of this form; the message quotes it.
        """
        sizes: dict[str, int] = {}
        for part in [] if mesh is None else mesh.split(","):
            name, _, size = part.strip().partition("=")
            if name not in (DATA, TOKENS) or name in sizes or not size.isdecimal() or int(size) < 1:
                raise ValueError(f"a mesh has the form data=4,tokens=2, got {mesh!r}")
            sizes[name] = int(size)
        return cls(**sizes, fsdp=fsdp)


class Devices(NamedTuple):
    """A mesh of devices, and how a run uses it.

    Attributes:
        mesh: The axis `data` shares the cases of a batch, the axis `tokens` the tokens of each case. Where several
            members train together, a first axis `member` shares them.
        fsdp: Whether parameters, their average and the optimiser's state are sharded too, over all devices.
    """

    mesh: Mesh
    fsdp: bool = False

    @classmethod
    def make(cls, settings: TrainSettings, layout: Layout) -> Self:
        """Makes the mesh that a run needs.

        Args:
            settings: The settings of the run.
            layout: What is asked for.

        Raises:
            ValueError: There are too few devices, devices of some process are left out, or something cannot be shared
                equally; the message quotes the numbers.
        """
        data, tokens, fsdp = layout
        number, cases = jax.device_count(), settings.batch_size // settings.optimizer.accumulation
        if settings.members > 1 and (fsdp or jax.process_count() > 1):
            what = "with --fsdp" if fsdp else "in several processes"
            raise ValueError(f"{settings.members} members cannot be trained {what}: train and join single runs")
        shared = math.gcd(settings.members, max(1, number // (tokens * (data or 1))))
        if data is None:
            data = math.gcd(cases, max(1, number // (tokens * shared)))
        if data * tokens > number:
            raise ValueError(f"the mesh data={data},tokens={tokens} needs {data * tokens} devices, there are {number}")
        if data * tokens < number and jax.process_count() > 1:
            raise ValueError(
                f"several processes use all of their {number} devices, got the mesh data={data},tokens={tokens}"
            )
        if cases % data:
            raise ValueError(f"data={data} devices cannot share {cases} cases equally; change batch_size or the mesh")
        sampling = settings.sampling
        for name in ("num_anchors", "num_queries", "num_supernodes"):
            if getattr(sampling, name) % tokens:
                raise ValueError(f"tokens={tokens} devices cannot share {name} = {getattr(sampling, name)} equally")
        axes = {MEMBER: shared} if settings.members > 1 else {}
        axes |= {DATA: data, TOKENS: tokens}
        axis_types = (jax.sharding.AxisType.Auto,) * len(axes)
        devices = jax.devices()[: math.prod(axes.values())]
        return cls(jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types, devices=devices), fsdp)

    @property
    def has_members(self) -> bool:
        """Whether states and batches have a leading axis of members."""
        return MEMBER in self.mesh.shape

    @property
    def token_axis(self) -> str | None:
        """The axis over which the model gathers keys and values."""
        return TOKENS if self.mesh.shape[TOKENS] > 1 else None

    @property
    def whole(self) -> NamedSharding:
        """The sharding of an array that every device has."""
        return NamedSharding(self.mesh, P())

    @property
    def summary(self) -> str:
        """Describes the mesh in one line."""
        used, number = self.mesh.size, jax.device_count()
        kind = jax.devices()[0].device_kind
        shape = "".join(f", {name}={size}" for name, size in self.mesh.shape.items()) if used > 1 else ""
        return f"{used} of {number} × {kind}{shape}{', fsdp' if self.fsdp else ''}"

    def batch_specs(self, batch: Sample) -> Sample:
        """Returns how each array of a batch is sharded; every device has the geometry points of its cases."""
        specs = jax.tree.map(lambda _: P(DATA, TOKENS), batch)
        specs = specs._replace(condition=jax.tree.map(lambda _: P(DATA), batch.condition))
        if batch.geometry is None:
            return specs
        features = None if batch.geometry.features is None else P(DATA)
        return specs._replace(geometry=specs.geometry._replace(position=P(DATA), features=features))

    def state_shardings(self, state: Tree) -> Tree:
        """Returns how each array of parameters or optimiser state is sharded: by its members, if there are several."""
        if not self.has_members:
            return self.member_shardings(state)
        spec = P(MEMBER) if self.mesh.shape[MEMBER] > 1 else P()
        shardings: Tree = jax.tree.map(lambda _: NamedSharding(self.mesh, spec), state)
        return shardings

    def member_shardings(self, state: Tree) -> Tree:
        """Returns how each array of one member is sharded: as a whole, or with `fsdp` in shards."""
        # As JAX writes it in what it returns, or a step would be compiled twice.
        shared = [name for name, size in self.mesh.shape.items() if size > 1]
        axes = shared[0] if len(shared) == 1 else tuple(shared)

        def shard(array: Any) -> NamedSharding:
            axis = next((i for i, size in enumerate(array.shape) if self.fsdp and size % self.mesh.size == 0), None)
            return NamedSharding(self.mesh, P() if axis is None else P(*[None] * axis, axes))

        shardings: Tree = jax.tree.map(shard, state)
        return shardings

    def abstract_state(self, state: Tree) -> Tree:
        """Returns the shapes of a state with their shardings, to restore a checkpoint to."""
        shapes: Tree = jax.tree.map(
            lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
            state,
            self.state_shardings(state),
        )
        return shapes

    def on_one(self, state: Tree) -> Tree:
        """Returns a copy of a state on the first device of this process."""
        whole = jax.jit(lambda tree: tree, out_shardings=self.whole)(state)
        copy: Tree = jax.tree.map(lambda array: array.addressable_data(0), whole)
        return copy

    def rows(self, batch_size: int) -> list[int]:
        """Returns the rows of a batch that devices of this process need."""
        needed = NamedSharding(self.mesh, P(DATA)).addressable_devices_indices_map((batch_size,))
        cases = [index[0] for index in needed.values() if index is not None]
        return sorted({row for where in cases for row in range(*where.indices(batch_size))})

    def put(self, batch: Sample, batch_size: int) -> Sample:
        """Starts copying a batch to the devices.

        Args:
            batch: Arrays on the host, of the `rows` alone; of several members, with a leading axis for them.
            batch_size: Number of rows of the whole batch.
        """
        if self.has_members:
            specs = self.batch_specs(batch)
            shardings = jax.tree.map(lambda _, spec: NamedSharding(self.mesh, P(MEMBER, *spec)), batch, specs)
            members: Sample = jax.device_put(batch, shardings)
            return members
        rows = self.rows(batch_size)

        def put(array: np.ndarray, spec: P) -> jax.Array:
            array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                cases, *others = index or ()
                start, stop, _ = cases.indices(batch_size)
                first = rows.index(start)
                return array[(slice(first, first + stop - start), *others)]

            return jax.make_array_from_callback((batch_size, *array.shape[1:]), NamedSharding(self.mesh, spec), shard)

        on_devices: Sample = jax.tree.map(put, batch, self.batch_specs(batch))
        return on_devices
