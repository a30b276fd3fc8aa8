"""Device memory of a fused step and its launches. Imported only where Triton is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..control import signals
from ..kernels import columns, launch
from ..recipes import _fused, contextual, improved
from .execute import Field
from .fused_tables import KINDS, Tables, code_tables, slabs_of, tiling

if TYPE_CHECKING:
    from .fused import Whole

COLUMN: dict[str, int] = {
    name: value.value for name, value in vars(columns).items() if name.isupper() and hasattr(value, "value")
}
SPARE = 4  # captures per plan
LOW_PRECISION = (torch.bfloat16, torch.float16)


class Runner:
    """Tables, scratch memory and launches of one ``Whole``."""

    def __init__(self, whole: Whole, optimizer: Any) -> None:
        self.whole, self.device = whole, whole.device
        self.launch = launch.Launcher()
        recipe, members = optimizer.recipe, whole.members
        self.code = whole.code
        unit, doublings = tiling(members)
        tables = Tables(
            members,
            recipe,
            optimizer.config.seed,
            COLUMN,
            launch.BAND,
            launch.CHUNK,
            launch.flat_tile(unit, doublings),
            unit,
            launch.PIECE[1],
        )
        self.gradient_kinds = sorted({KINDS[m.p.grad.dtype] for m in members})  # type: ignore[union-attr]
        self.flags = self._flags(recipe, members, tables, optimizer, doublings)
        self.one = torch.ones(1, device=self.device)
        self.scale = self.found = self.factor = self.one
        self.last: list[int] = []
        self.captured: list[Tensor] = []
        self.buffers = self._buffers(recipe, members, tables, optimizer)
        self.watch = None if optimizer.controller is None else self._watch(optimizer.controller, members)

    def _flags(
        self, recipe: Any, members: list[Any], tables: Tables, optimizer: Any, doublings: int
    ) -> launch.Flags:
        kinds = {KINDS[m.p.dtype] for m in members}
        code = self.code
        fields: list[Field] = [field for m in members for field in m.fields]
        names = {spec.name for spec, _ in fields}
        hypers = self.whole.hypers
        pictures = any(_fused.picture_size(recipe, m.hp, m.chunk.layout)[0] for m in members)
        rounds = optimizer.config.stochastic_rounding is not False
        return launch.Flags(
            P_KIND=kinds.pop() if len(kinds) == 1 else launch.ANY.value,
            G_KIND=self.gradient_kinds[0] if len(self.gradient_kinds) == 1 else launch.ANY.value,
            CODE=code.number if code is not None else 0,
            ERROR=code.error if code is not None else 0,
            LOG=tables.log,
            SCALED=False,
            PICTURE=pictures,
            ROW_MASK="last_polarity" in names,
            IMPROVED=recipe is improved,
            MULTIPLIED=recipe is contextual,
            NS=len(_fused.momenta(recipe, hypers[0])),
            RANKED=bool(tables.pieces),
            RANDOM=rounds and any(m.p.dtype in LOW_PRECISION for m in members),
            HALF=tables.half,
            SPD=recipe is improved and any(hp.use_spd and hp.weight_decay > 0 for hp in hypers),
            HAS_FOUND=False,
            REST=tables.rest,
            UNIT=tables.unit,
            DOUBLINGS=doublings,
        )

    def _buffers(self, recipe: Any, members: list[Any], tables: Tables, optimizer: Any) -> launch.Buffers:
        device, count, groups = self.device, len(members), len(self.whole.groups) + 1
        hyper = torch.zeros(groups, COLUMN["HYPER"], dtype=torch.float64)
        weights: list[float] = []
        for i, hp in enumerate(self.whole.hypers):
            for name, value in _fused.hyper_row(recipe, hp).items():
                hyper[i, COLUMN[f"H_{name}"]] = float(value)
            weights += _fused.weights(recipe, hp)
        code = self.flags.CODE
        code_map, base, bound = code_tables(device, code)
        scratch = {"dtype": torch.float32, "device": device}
        self.values = -(-(count + groups) // 2) * 2  # what follows starts at a multiple of 16 bytes
        self.dynamic = torch.zeros(self.values + 2 * groups, dtype=torch.int64, device=device)
        self.spare = [self._pinned([0] * len(self.dynamic)) for _ in range(SPARE)]
        kept = [v.data_ptr() for v in self.whole.kept]
        return launch.Buffers(
            tab=self._table(tables.tab.tolist()),
            hyper=self._table(hyper.float().tolist(), torch.float32),
            dynamic=self.dynamic,
            tiles=self._table(tables.tiles),
            chunks=self._table(tables.chunks or torch.empty(0, 4).tolist()),
            pieces=self._table(tables.pieces or torch.empty(0, 4).tolist()),
            flat=self._table(tables.flat),
            kept=self._table(kept),
            scales=self._table(tables.scales or [0]),
            weights=self._table(weights or [0.0], torch.float32),
            rows=torch.empty(tables.rows, **scratch),
            cols=torch.empty(max(1, tables.cols), **scratch),
            part=torch.empty(max(1, tables.part), **scratch),
            tile_sums=torch.empty(len(tables.tiles), COLUMN["TILE_SUMS"], **scratch),
            chunk_sums=torch.empty(max(1, len(tables.chunks)), COLUMN["CHUNK_SUMS"], **scratch),
            numbers=torch.empty(count, COLUMN["NUMBERS"], **scratch),
            means=torch.empty(tables.matrices, 4, **scratch),
            ranks=torch.empty(max(1, tables.ranks), **scratch),
            piece_sums=torch.empty(max(1, len(tables.pieces)), COLUMN["PIECE_SUMS"], **scratch),
            mask_mean=torch.empty(1, **scratch),
            new=torch.empty(len(tables.flat), **scratch),
            lr=self.dynamic[self.values :],
            skipped=optimizer._skip_counts(device),
            code_map=code_map,
            code_base=base,
            code_bound=bound,
            mask_table=_fused.mask_table(device),
        )

    def _watch(self, controller: Any, members: list[Any]) -> launch.Watch:
        """What the contextual controller's passes need."""
        slabs = slabs_of(members, COLUMN["BUCKETS"], COLUMN["PERIOD"])
        slices = min(launch.SLICES, len(slabs))
        slices = -(-len(slabs) // -(-len(slabs) // slices))
        window, rate = controller.context_window, controller.adaptation_rate
        slow, slack = 2 / (window + 1), 1 - controller.edge_threshold
        numbers = (
            *(slow, min(max(rate, 2 * slow), 1.0), rate, slack, math.log1p(10 * slack)),
            *(float(min(signals.START_UP, window)), signals.EDGE_LOG_MULTIPLIER, signals.CONSISTENT),
            *(signals.TREND_WEIGHT, signals.TREND_SCALE, *map(math.log, controller.context_lr_bounds)),
        )
        return launch.Watch(
            memory=self.one,
            slabs=self._table(slabs),
            signs=_fused.sign_table(self.device),
            sketches=torch.empty(slices, COLUMN["BUCKETS"], device=self.device),
            group=len(self.whole.groups),
            window=window,
            numbers=numbers,
        )

    def observe(self, controller: Any) -> None:
        """The controller's move after a step that ``run`` made."""
        assert self.watch is not None
        controller.memory = controller._memory_on(self.device)
        window = (len(controller.memory) - signals.Memory.size(0)) // 3
        watch = self.watch._replace(memory=controller.memory, window=window)
        loss = controller.take_total(self.device)
        count = len(self.whole.members)
        launch.observe(self.launch, self.buffers, watch, count, loss)

    def _table(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        """Host numbers as device memory, without waiting."""
        return self._pinned(values, dtype).to(self.device, non_blocking=True)

    def scaler(self, scale: Tensor | None, found: Tensor | None) -> None:
        """Factor that the gradients were multiplied by, and whether to skip the step; None: neither."""
        self.scale = self.one if scale is None else scale
        self.found = self.one if found is None else found
        self.flags = self.flags._replace(SCALED=scale is not None, HAS_FOUND=found is not None)

    def _bring(self, optimizer: Any) -> None:
        """Addresses of the gradients and the rates: one copy, where anything changed."""
        from .fused import bits_of

        members = self.whole.members
        groups = [*self.whole.groups, optimizer.param_groups[0]]  # the controller notes its rate
        values = [m.p.grad.data_ptr() for m in members]  # type: ignore[union-attr]
        slots = self.dynamic.data_ptr() + 8 * len(members)
        pairs: list[int] = []
        for i, group in enumerate(groups):
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device == self.device:
                values.append(0)
                pairs += [lr.data_ptr(), int(lr.dtype == torch.float64)]
            else:  # a number, or a tensor on the host, which is read without waiting
                values.append(bits_of(float(lr)))
                pairs += [slots + 8 * i, 1]
        values += [0] * (self.values - len(values)) + pairs
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            host = self._captured(values)
        elif values == self.last and not self.captured:  # a graph's replay brings its own
            return
        else:
            host = self._pinned(values)  # a fresh one: the last may still be on its way
        self.last = values
        self.dynamic.copy_(host, non_blocking=True)

    def _captured(self, values: list[int]) -> Tensor:
        """Host memory that a CUDA graph reads at every replay; memory made during a capture would end it."""
        if not self.spare:
            raise RuntimeError(
                f"a plan can be captured by {SPARE} CUDA graphs at most: make a new optimizer."
            )
        host = self.spare.pop()
        host.copy_(torch.tensor(values, dtype=torch.int64))
        self.captured.append(host)
        return host

    def _pinned(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        """Numbers in host memory from which a copy need not be waited for."""
        host = torch.tensor(values, dtype=dtype)
        return host.pin_memory() if self.device.type == "cuda" else host

    def run(self, optimizer: Any) -> None:
        """One step."""
        if optimizer.controller is not None:
            self.factor = optimizer.controller.multiplier(self.one)
        self._bring(optimizer)
        self.buffers = self.buffers._replace(skipped=optimizer._skip_counts(self.device))
        elements = float(self.whole.elements) if not math.isinf(self.whole.elements) else 0.0
        launch.passes(
            self.launch,
            self.buffers,
            self.flags,
            len(self.whole.members),
            elements,
            self.scale,
            self.found,
            self.factor,
            self.watch,
        )
