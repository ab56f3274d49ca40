"""One frozen, validated description of an attention, in the words of `configs/attention_config.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from psa_triton.mistakes import keys, mistake
from psa_triton.ratios import check_mask_ratios

Level = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Budget = Annotated[float, Field(gt=0.0, le=1.0)]
MaskMode = Literal["topk", "thresholdbound", "budget"]
Importance = Literal["sampled", "finely_sampled", "antidiagonal", "pooled", "representative"]
BudgetScope = Literal["row", "head", "layer"]
RearrangeMethod = Literal["Gilbert", "STA", "SemanticAware", "Hybrid"]
AttnImpl = Literal["auto", "new_mask_type", "old_mask_type"]
PoolCorrection = Literal["none", "isotropic"]
QKDtype = Literal["auto", "int8"]
KeptForm = Literal["full", "fp8", "mean2", "mean4", "mean8"]
Way = Literal["broadcast", "sparse", "refresh"]


DEFAULT_PROBE = 0.01
"""Share of the query rows that are computed exactly where errors are to be bounded and no other share is given."""


def _pairs(value: Any) -> Any:
    """YAML has no tuples and may quote the level: accept lists and digit strings."""
    if not isinstance(value, dict):
        return value
    pairs = {
        int(k) if isinstance(k, str) and k.isdigit() else k: tuple(v) if isinstance(v, list) else v
        for k, v in value.items()
    }
    if len(pairs) < len(value):
        raise ValueError(f"expected each level once, got {', '.join(map(repr, value))}")
    return pairs


MaskRatios = Annotated[dict[Level, tuple[float, float]], BeforeValidator(_pairs), AfterValidator(check_mask_ratios)]


class SimThresholds(BaseModel):
    """Least mean cosine similarity of neighbouring keys at which a block may be pooled by 2, 4, 8."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    x2: float = Field(default=0.7, ge=-1.0, le=1.0)
    """For level 2: tokens one apart."""
    x4: float = Field(default=0.65, ge=-1.0, le=1.0)
    """For level 4: tokens three apart."""
    x8: float = Field(default=0.6, ge=-1.0, le=1.0)
    """For level 8: tokens seven apart."""


class BudgetRow(BaseModel):
    """Budgets of all layers over some part of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    start: float = Field(ge=0.0, lt=1.0)
    """Share of the denoising steps from which on they hold, until the next row's."""
    budgets: tuple[Budget, ...] = Field(min_length=1)
    """One for each transformer block; 1 runs it dense."""


class Reuse(BaseModel):
    """How a video model's layers make their attention from that of earlier denoising steps.

    In a refresh a layer runs dense and sparse, and keeps the difference; later steps add it to the sparse output, or
    repeat the last output (broadcast). One of `refresh_every`, `refresh_steps` and `max_error` says when.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    refresh_every: int | None = Field(default=None, ge=1)
    """Steps from one refresh to the next."""
    refresh_steps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The steps that refresh, counted from 0, which always does."""
    max_error: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Each layer goes the cheapest way whose measured relative error is at most this."""
    layer_groups: int = Field(default=1, ge=1)
    """refresh_every only: layers refresh in turn, in so many groups, for steps that take equally long."""
    sparse_every: int = Field(default=1, ge=0)
    """Of the steps since a layer's refresh every so many run sparse, the others broadcast; 0: none.

    That is so in the middle of the schedule, from a third to five sixths of the steps, where attention moves least and
    an error shows least; before and after it twice as many run sparse.
    """
    middle_tolerance: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    """max_error only: how many times it the error may be in the middle of the schedule."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Transformer blocks that reuse; all if left out. The others run sparse in every step."""
    keep: KeptForm = "full"
    """Differences: in the model's type, in 8-bit floats with a scale a row, or as means of neighbouring tokens.

    Outputs to repeat are kept in 8-bit floats, too, unless this is `full`."""
    keep_on: Literal["device", "host"] = "device"
    """Where what is kept lies between the steps."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [name for name in ("refresh_every", "refresh_steps", "max_error") if getattr(self, name)]
        if len(given) != 1:
            came = " and ".join(given) or "none"
            raise ValueError(f"expected one of refresh_every, refresh_steps and max_error, got {came}")
        if self.layer_groups > (self.refresh_every or 1):
            raise ValueError(
                f"layer_groups: expected at most refresh_every, one step at least for each group, "
                f"got {self.layer_groups} with refresh_every {self.refresh_every}"
            )
        if self.max_error is not None and self.sparse_every != 1:
            raise ValueError(
                f"sparse_every: expected it without max_error, which decides itself, got {self.sparse_every}"
            )
        if self.max_error is None and self.middle_tolerance != 1:
            raise ValueError(f"middle_tolerance: expected it with max_error alone, got {self.middle_tolerance:g}")
        return self

    @property
    def keep_output(self) -> KeptForm:
        """How outputs to repeat are kept: means of neighbours would do for differences alone."""
        return "full" if self.keep == "full" else "fp8"

    @property
    def runs_sparse(self) -> bool:
        """Whether there are sparse steps."""
        return self.sparse_every > 0

    @property
    def broadcasts(self) -> bool:
        """Whether there are steps that repeat an output."""
        return self.max_error is not None or self.sparse_every != 1

    def covers(self, layer: int) -> bool:
        """Whether `layer` reuses."""
        return not self.layers or layer in self.layers

    def bound(self, step: int, steps: int | None) -> float | None:
        """What the error may be in a step of so many; None without `max_error`."""
        if self.max_error is None or not _in_middle(step, steps):
            return self.max_error
        return self.max_error * self.middle_tolerance

    def way(self, step: int, layer: int, steps: int | None) -> Way:
        """How `layer` attends in a step of so many by the rhythm, where it has kept something; not with `max_error`."""
        if self.refresh_every is None:
            age = step - max((at for at in self.refresh_steps if at <= step), default=0)
        else:
            turn = layer % self.layer_groups * self.refresh_every // self.layer_groups
            age = (step - turn) % self.refresh_every
        if age == 0:
            return "refresh"
        if self.sparse_every == 0:
            return "broadcast"
        every = self.sparse_every if _in_middle(step, steps) else max(1, self.sparse_every // 2)
        return "sparse" if age % every == 0 else "broadcast"


def _in_middle(step: int, steps: int | None) -> bool:
    """All steps are where their number is not known."""
    return steps is None or (3 * step >= steps and 6 * (step + 1) <= 5 * steps)


class PSAConfig(BaseModel):
    """How an attention is made sparse: blocks, levels, importance, token order, warm-up.

    Frozen; `replace` makes a changed, validated copy. Field names are the YAML's, with `block_size.{m,n,tile_n}`
    flattened to `block_m`, `block_n`, `tile_n`.

    Raises:
        pydantic.ValidationError: (a `ValueError`) naming each field at fault, what is allowed there and what came; for
            an unknown field the nearest known one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    description: str = ""
    """What the preset is for, in words."""
    block_m: Literal[32, 64, 128] = 128
    """Query tokens that share one row of levels."""
    block_n: Literal[32, 64, 128] = 64
    """Key tokens that share one level."""
    tile_n: Literal[16, 32, 64, 128] = 32
    """Rows a GPU kernel may load at a time: a hint to the kernel, with no influence on the result."""
    mask_ratios: MaskRatios = Field(
        default={1: (0.0, 0.1), 2: (0.1, 0.15), 4: (0.15, 0.15), 8: (0.15, 0.35), 0: (0.35, 1.0)}, validate_default=True
    )
    """Share `[lo, hi)` of a row's blocks (topk) or importance mass (thresholdbound) that each level gets."""
    mask_mode: MaskMode = "topk"
    """`topk`: fixed shares of the blocks; `thresholdbound`: of the importance mass; `budget`: least expected error."""
    budget: Budget = 0.15
    """budget only, instead of `mask_ratios`: density, that of the importance estimate included."""
    budget_table: tuple[BudgetRow, ...] = ()
    """budget only: budgets by layer and denoising step, for video models; `budget` holds where these are not known."""
    budget_scope: BudgetScope = "row"
    """budget only: whether each row of blocks has the budget for itself, or shares it within its head or its layer."""
    min_full_ratio: Share = 0.06
    """thresholdbound only: at least floor(this * blocks) + 1 blocks of a row stay at level 1."""
    importance: Importance = "sampled"
    """How the importance of a key block for a query block is estimated; with `budget`, `representative` if left out."""
    use_sim_mask: bool = False
    """Cap the level of key blocks whose neighbouring keys are unlike (`sim_thresholds`)."""
    sim_thresholds: SimThresholds = SimThresholds()
    """Similarity from which on a block may be pooled."""
    keep_first_block: bool = False
    """Read the first key block in full whatever its importance: causal models rest attention on it."""
    pool_correction: PoolCorrection = "none"
    """`isotropic`: add to the logits of levels 2, 4, 8 what pooling takes from their groups' weight on average."""
    qk_dtype: QKDtype = "auto"
    """`int8`: multiply queries and keys in 8 bits, where GPUs are faster at it; without gradients."""
    use_rearrange: bool = True
    """Put visual tokens along `rearrange_method` before blocking, where their grid is known."""
    rearrange_method: RearrangeMethod = "Gilbert"
    """Token order: space-filling curve, 3D tiles, k-means clusters, or clusters kept along the curve."""
    tile_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (2, 8, 8)
    """Tile (frames, height, width) of the STA order, tokens."""
    attn_impl: AttnImpl = "auto"
    """`auto` has every feature; the other two keep the limits that existing presets were written for."""
    warmup_steps: int = Field(default=0, ge=0)
    """First denoising steps that run dense."""
    reuse: Reuse | None = None
    """Video models: attention made from that of earlier denoising steps."""
    probe: Share = 0.0
    """Video models: share of the query rows that are computed exactly beside sparse attention, to measure its error."""
    verbose: bool = False
    """Log density and time of every sparse attention call."""

    @model_validator(mode="before")
    @classmethod
    def _estimate_for_budget(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mask_mode") == "budget":
            return {"importance": "representative"} | data
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        coarsest = max(self.mask_ratios)
        if coarsest > self.block_n:
            raise ValueError(
                f"mask_ratios: level {coarsest} is coarser than a key block of block_size.n = {self.block_n} tokens"
            )
        if self.mask_mode == "budget" and self.use_sim_mask:
            raise ValueError(
                "use_sim_mask: a budget weighs itself how unlike the keys of a block are, and a cap would exceed it; "
                "set use_sim_mask: false, or mask_mode: topk or thresholdbound"
            )
        if self.attn_impl == "new_mask_type" and self.use_sim_mask:
            raise ValueError(
                "attn_impl: 'new_mask_type' cannot be used with use_sim_mask: true; "
                "set use_sim_mask: false, or attn_impl: auto, or attn_impl: old_mask_type with block_size.n: 128"
            )
        if self.reuse is not None and self.reuse.max_error is not None and self.probe == 0:
            raise ValueError("probe: expected more than 0, as reuse.max_error needs errors to be measured, got 0")
        if self.attn_impl == "old_mask_type" and self.block_n != 128:
            raise ValueError(
                f"attn_impl: 'old_mask_type' expects block_size.n = 128, got {self.block_n}; "
                "set block_size.n: 128, or attn_impl: auto"
            )
        return self

    @model_validator(mode="after")
    def _consistent_table(self) -> Self:
        table = self.budget_table
        if table and self.mask_mode != "budget":
            raise ValueError(f"budget_table: expected it with mask_mode 'budget', got {self.mask_mode!r}")
        starts = [row.start for row in table]
        if table and (starts[0] != 0 or any(here >= following for here, following in pairwise(starts))):
            raise ValueError(f"budget_table: expected rows that start at 0 and then ever later, got {starts}")
        if len(layers := sorted({len(row.budgets) for row in table})) > 1:
            raise ValueError(f"budget_table: expected as many budgets in every row, got {layers}")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _in_own_words(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Tells mistakes as those of a presets file are told; a file's own are told there, with their places.

        The last of the validators: it tells what the others find.
        """
        try:
            return handler(data)
        except ValidationError as error:
            if cls is not PSAConfig:
                raise
            raise ValidationError.from_exception_data(
                cls.__name__, [_reworded(details) for details in error.errors(include_url=False)]
            ) from error

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a PSAConfig is frozen; config.replace({name}=...) makes a changed copy")

    def at(self, layer: int, progress: float) -> PSAConfig:
        """How one layer attends at one denoising step: `budget_table` has become `budget`.

        Args:
            layer: index of the transformer block.
            progress: share of the denoising steps that are done, in [0, 1).
        """
        if not self.budget_table:
            return self
        begun = [row for row in self.budget_table if row.start <= progress]
        return self._by_budget[begun[-1].budgets[layer]]

    @property
    def reads_all(self) -> bool:
        """Whether a budget leaves nothing to save: dense attention gives the same for less."""
        return self.mask_mode == "budget" and self.budget == 1.0 and not self.budget_table

    @cached_property
    def _by_budget(self) -> dict[float, PSAConfig]:
        """What `at` may return. Made once: it is asked for in every attention call."""
        budgets = {budget for row in self.budget_table for budget in row.budgets}
        return {budget: self.replace(budget=budget, budget_table=()) for budget in sorted(budgets)}

    def bounded(self, max_error: float) -> PSAConfig:
        """A copy whose error decides when layers refresh, instead of warm-up and rhythm."""
        stays = {"middle_tolerance", "layers", "keep", "keep_on"}
        kept = {} if self.reuse is None else self.reuse.model_dump(include=stays)
        try:
            reuse = Reuse(max_error=max_error, **kept)
        except ValidationError as error:
            raise ValueError(f"max_error: expected a finite number above 0, got {max_error!r}") from error
        return self.replace(reuse=reuse, probe=self.probe or DEFAULT_PROBE, warmup_steps=0)

    @cached_property
    def text(self) -> str:
        """All of it as JSON, which operators of torch can take."""
        return self.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.text)

    def model_post_init(self, context: Any) -> None:
        """Makes `text` before `torch.compile` meets it: a graph is right for this text alone, and cannot make it."""
        _ = self.text

    @staticmethod
    @lru_cache(maxsize=256)
    def from_text(text: str) -> PSAConfig:
        """The config whose `text` this is."""
        return PSAConfig.model_validate_json(text)

    def replace(self, **changes: Any) -> PSAConfig:
        """A validated copy with `changes`."""
        return PSAConfig(**{**self.model_dump(), **changes})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> PSAConfig:
        """`replace`, as pydantic calls it: its own copy would keep the `text` of what it was copied from."""
        return self.replace(**update or {})


NESTED: dict[int | str, type[BaseModel]] = {"sim_thresholds": SimThresholds, "budget_table": BudgetRow, "reuse": Reuse}
"""What the fields hold that are no plain values."""


def _reworded(details: ErrorDetails) -> InitErrorDetails:
    place = details["loc"]
    known = keys(NESTED.get(place[0], PSAConfig) if len(place) > 1 else PSAConfig)
    path = ".".join(str(part) for part in place if part != "[key]")  # the marker of a mapping's bad key
    words = mistake(path, details, known)
    error = PydanticCustomError(details["type"], "{words}", {"words": words})
    return InitErrorDetails(type=error, loc=place, input=details["input"])
