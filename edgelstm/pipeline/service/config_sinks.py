"""The pipeline file: what may stand in it of sinks and alarms. Needs pydantic (``edgelstm[serve]``)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.service.alarm import Rule
from edgelstm.pipeline.sinks import Options, kind_of, shown
from edgelstm.verify.anomaly import Detector
from edgelstm.verify.step_errors import compared

#: Streams are named in paths and logs.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$"
Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SinkSection(Section):
    """Where outputs go, with options; each kind of sink takes some of them."""

    to: Text = Field(description="A path or an address.")
    user: Text | None = Field(default=None, description="MQTT, HTTP: in place of the address's.")
    password: Text | None = Field(default=None, description="MQTT, HTTP: as a rule ${NAME}.")
    qos: Annotated[int, Field(ge=0, le=2)] | None = Field(
        default=None, description="MQTT: 0 (at most once), 1 (at least once) or 2 (once)."
    )
    retain: bool | None = Field(default=None, description="MQTT: the broker keeps the newest.")
    will: Text | None = Field(
        default=None,
        description="MQTT: a topic that says online or offline, the latter by the broker when we are gone.",
    )
    client: Text | None = Field(
        default=None, description="MQTT: the client's name; without it, one by chance."
    )
    ca: Text | None = Field(default=None, description="TLS: a PEM file of who is trusted; else the system's.")
    cert: Text | None = Field(default=None, description="TLS: a PEM file of our certificate.")
    key: Text | None = Field(default=None, description="TLS: a PEM file of its key.")
    headers: dict[Text, str] | None = Field(default=None, description="HTTP: headers of each request.")
    timeout: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        default=None, description="MQTT, HTTP: seconds to connect, and to be answered."
    )
    retries: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None, description="HTTP: tries after the first."
    )
    batch: Annotated[int, Field(ge=1, le=10000)] | None = Field(
        default=None, description="HTTP: lines in one request, at most."
    )
    every: Annotated[float, Field(gt=0, le=86400)] | None = Field(
        default=None, description="HTTP: seconds from one request to the next, at least."
    )
    output: Text | None = Field(default=None, description="Pictures: which output.")
    channel: Annotated[int, Field(ge=0)] | None = Field(default=None, description="Pictures: which channel.")
    lead: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Pictures: which lead time, from 1; without it, all side by side."
    )
    range: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="Pictures: the values that are black and white."
    )
    colours: Text | None = Field(
        default=None, description="Pictures: as `edgelstm run --colours`; without it, grey."
    )
    beside: bool | None = Field(
        default=None, description=".mp4, FOLDER/: the input stands left of the output."
    )
    caption: bool | None = Field(
        default=None,
        description=".mp4, FOLDER/: what is shown, when and in which units, and a bar of the colours.",
    )
    truth: bool | None = Field(
        default=None,
        description=".mp4, FOLDER/: of a forecast, what came then stands beside it, with captions.",
    )
    quantity: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9]*$")] | None = Field(
        default=None, description="ODIM: what the values are, such as RATE; without it, by their unit."
    )
    rotate: Annotated[float, Field(ge=1, le=31_536_000)] | None = Field(
        default=None,
        description="Files that are put in place at the end: seconds from one to the next, NAME-20261128T031000Z and so on.",
    )
    keep: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="How many of these stay; without it, all."
    )

    def options(self) -> Options:
        """All but where."""
        given = self.model_dump(exclude={"to"})
        return Options(**given | {"range": None if self.range is None else (self.range[0], self.range[1])})


def _branch(value: Any) -> str:
    return "<table>" if isinstance(value, (dict, SinkSection)) else "<text>"


OneSink = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[SinkSection, Tag("<table>")], Discriminator(_branch)
]


def _several(value: Any) -> str:
    return "<several>" if isinstance(value, (list, tuple)) else "<one>"


Sinks = Annotated[
    Annotated[OneSink, Tag("<one>")] | Annotated[list[OneSink], Field(max_length=16), Tag("<several>")],
    Discriminator(_several),
]


def targets(sinks: str | SinkSection | list[str | SinkSection]) -> tuple[tuple[str, Options], ...]:
    """Where, and with which options."""
    every = sinks if isinstance(sinks, list) else [sinks]
    return tuple((s, Options()) if isinstance(s, str) else (s.to, s.options()) for s in every)


def wrong_sink(where: str, options: Options, events: bool = False) -> tuple[str, str] | None:
    """What was found, and what is expected, where that is no sink or does not take these options."""
    try:
        kind_of(where, options, events=events)
    except EdgeLstmError as error:
        return f"{error.found} for {shown(where)}", str(error.expected)
    return None


Reduction = Annotated[
    Annotated[Literal["max", "min", "mean"], Tag("<text>")]
    | Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8), Tag("<several>")],
    Discriminator(lambda value: "<several>" if isinstance(value, list) else "<text>"),
]


class AlarmSection(Section):
    """A threshold on one number of an output."""

    detector: Text | None = Field(
        default=None,
        description="A file of `edgelstm fit-detector`: the number is its score, `above` its threshold unless given.",
    )
    output: Text | None = Field(default=None, description="Whose number; may be left out where there is one.")
    of: Reduction = Field(
        default="max",
        description="The number: max, min or mean of the output's elements, or the place of one, as [0, 3].",
    )
    above: Finite | None = Field(default=None, description="It fires when the number is above this.")
    below: Finite | None = Field(default=None, description="Or below this.")
    clear: Finite | None = Field(
        default=None,
        description="It clears when the number is back at this or beyond; without it, at the threshold.",
    )
    hold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="Seconds that the number must be there without a break before it fires."
    )
    hold_clear: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="Seconds that the number must be back without a break before it clears."
    )
    sink: Sinks = Field(
        description="Where its events go: as the stream's `sink`, of those that take lines; {alarm} is the alarm's name."
    )

    @property
    def targets(self) -> tuple[tuple[str, Options], ...]:
        """Where events go, and with which options."""
        return targets(self.sink)

    def wrong(self) -> tuple[str, str, str] | None:
        """Key, what was found, what is expected; None where all is well."""
        if self.detector is not None:
            for key in ("output", "of", "below"):
                if key in self.model_fields_set:
                    return key, f"{key} beside detector", "one of them: the number is the detector's score"
        elif (self.above is None) == (self.below is None):
            found = "neither" if self.above is None else "both"
            return "above", found, "above = ..., or below = ..., or detector = ..."
        if self.clear is not None:
            limit = self.above if self.above is not None else self.below
            if limit is not None and (
                (self.clear > limit) if self.above is not None else (self.clear < limit)
            ):
                return (
                    "clear",
                    f"{self.clear:g}",
                    f"{'at most' if self.above is not None else 'at least'} {limit:g}",
                )
        if not self.targets:
            return "sink", "nothing", "where its events go"
        for where, options in self.targets:
            if (found_ := wrong_sink(where, options, events=True)) is not None:
                return "sink", *found_
        return None

    def of_detector(self, detector: Detector, signature: Signature, fresh: int | None) -> Rule:
        """The rule on a detector's score, of a model of this signature. Raises EdgeLstmError when they don't fit."""
        output, _, _ = compared(signature, detector.target, fresh)
        shape = signature.inputs[0].frame_shape
        if detector.mean and len(detector.mean) != (shape[-1] if shape else 1):
            raise EdgeLstmError(
                "detector",
                found=f"{len(detector.mean)} values a frame",
                expected=f"{shape[-1] if shape else 1}",
            )
        limit = detector.threshold if self.above is None else self.above
        clear = limit if self.clear is None else self.clear
        if clear > limit:
            raise EdgeLstmError("clear", found=f"{clear:g}", expected=f"at most {limit:g}")
        return Rule(output, "score", True, limit, clear, self.hold, self.hold_clear)

    def rule(self, signature: Signature) -> Rule:
        """For outputs of this signature. Raises EdgeLstmError when it doesn't fit."""
        names = [spec.name for spec in signature.outputs]
        if self.output is None and len(names) != 1:
            raise EdgeLstmError("output of an alarm", found="none", expected=f"one of {', '.join(names)}")
        above = self.above is not None
        limit = self.above if self.above is not None else self.below
        assert limit is not None
        rule = Rule(
            self.output or names[0],
            self.of if isinstance(self.of, str) else tuple(self.of),
            above,
            limit,
            limit if self.clear is None else self.clear,
            self.hold,
            self.hold_clear,
        )
        rule.check(signature)
        return rule
