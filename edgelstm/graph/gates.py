"""FusedGates: the op that turns an LSTM's gate pre-activations and old cell state into h and the new cell state.

One frozen :class:`GateVariant` is the source of a variant's forms, which must agree: the ONNX function body
(standard operators, any runtime), the NumPy reference, and the fields of the CUDA kernel's plugin.

Inputs: ``z`` [N, 4C, *spatial], pre-activations in the order i, f, g, o (N, 3C in the order i, g, o when coupled);
``c`` [N, C, *spatial]; with peepholes ``p_i, p_f, p_o``, each broadcastable to [C, *spatial] (no p_f when coupled).
Outputs: ``h`` and ``c_out``, both [N, C, *spatial].

Sources: Gers, Schmidhuber & Cummins 1999 (forget gate); Gers & Schmidhuber 2000 (peepholes, o sees the new c);
Shi et al. 2015, eq. 3 (Hadamard peepholes on maps); Greff et al. 2017 (coupled gates); Sak et al. 2014 (cell clip).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError

if TYPE_CHECKING:
    import onnx

DOMAIN = "edgelstm"
DOMAIN_VERSION = 1
PREFIX = "FusedGates_"

GateActivation = Literal["sigmoid", "hard_sigmoid"]
CellActivation = Literal["tanh", "relu"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GateVariant:
    """Which LSTM equations: everything that changes FusedGates's body, and nothing else.

    peephole: i and f see the old c, o the new one.
    gate: activation of i, f, o; ``hard_sigmoid`` is clip(alpha x + beta, 0, 1): Keras 2 has alpha 0.2 beta 0.5,
    Keras 3 and PyTorch have alpha 1/6 beta 0.5.
    candidate, output: activation of g, and of c_out on its way to h.
    cell_clip: c_out is clipped to [-cell_clip, cell_clip] before o and h see it.
    coupled: f = 1 - i.
    coded: z comes as 8-bit codes, worth (z - z_zero_point) * z_scale with a scale and a zero point for each gate
    [len(gates)]. They are split before they are dequantised, which moves a quarter of the bytes.
    """

    peephole: bool = False
    gate: GateActivation = "sigmoid"
    alpha: float = 0.2
    beta: float = 0.5
    candidate: CellActivation = "tanh"
    output: CellActivation = "tanh"
    cell_clip: float | None = None
    coupled: bool = False
    coded: bool = False

    def __post_init__(self) -> None:
        if self.gate not in get_args(GateActivation):
            raise EdgeLstmError("gate activation", found=self.gate, expected=get_args(GateActivation))
        for label, value in (("candidate", self.candidate), ("output", self.output)):
            if value not in get_args(CellActivation):
                raise EdgeLstmError(f"{label} activation", found=value, expected=get_args(CellActivation))
        if self.cell_clip is not None and not 0 < self.cell_clip < float("inf"):
            raise EdgeLstmError("cell_clip", found=self.cell_clip, expected="a finite number above 0")
        if self.gate == "sigmoid" and (self.alpha, self.beta) != (0.2, 0.5):
            raise EdgeLstmError("alpha and beta", found="gate='sigmoid'", expected="gate='hard_sigmoid'")
        if not all(map(math.isfinite, (self.alpha, self.beta))):
            raise EdgeLstmError(
                "alpha and beta", found=f"{self.alpha} and {self.beta}", expected="finite numbers"
            )

    @property
    def op_type(self) -> str:
        """The op's name: unique for each body and arity, since some parsers look functions up by name alone."""
        parts = ["peephole" if self.peephole else "lstm"]
        if self.gate == "hard_sigmoid":
            parts.append(f"hard_{_mangle(self.alpha)}_{_mangle(self.beta)}")
        if self.candidate != "tanh":
            parts.append(f"g{self.candidate}")
        if self.output != "tanh":
            parts.append(f"h{self.output}")
        if self.cell_clip is not None:
            parts.append(f"clip_{_mangle(self.cell_clip)}")
        if self.coupled:
            parts.append("coupled")
        if self.coded:
            parts.append("coded")
        return PREFIX + "_".join(parts)

    @classmethod
    def of(cls, op_type: str) -> GateVariant:
        """The variant whose ``op_type`` that is. Raises EdgeLstmError for other names."""
        words = [*op_type.removeprefix(PREFIX).split("_"), "0", "0"]
        fields: dict[str, Any] = {"peephole": words[0] == "peephole"}
        try:
            for k, word in enumerate(words):
                if word == "hard":
                    alpha, beta = _number(words[k + 1]), _number(words[k + 2])
                    fields |= {"gate": "hard_sigmoid", "alpha": alpha, "beta": beta}
                elif word == "clip":
                    fields["cell_clip"] = _number(words[k + 1])
                elif word in ("grelu", "hrelu"):
                    fields["candidate" if word == "grelu" else "output"] = "relu"
        except ValueError as error:
            raise EdgeLstmError(f"{op_type} is no FusedGates op", expected=f"{PREFIX}...") from error
        variant = cls(**fields, coupled="coupled" in words, coded="coded" in words)
        if variant.op_type != op_type:
            raise EdgeLstmError(f"{op_type} is no FusedGates op", expected=f"{PREFIX}...")
        return variant

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates in ``z``, in order."""
        return ("i", "g", "o") if self.coupled else ("i", "f", "g", "o")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Formal inputs in order."""
        names: tuple[str, ...] = ("z", "c")
        if self.peephole:
            names += ("p_i", "p_o") if self.coupled else ("p_i", "p_f", "p_o")
        return (*names, "z_scale", "z_zero_point") if self.coded else names

    def reference(self, z: Array, c: Array, *peepholes: Array) -> tuple[Array, Array]:
        """(h, c_out) by NumPy, in the dtype of ``c``. Shapes as in the module's docstring."""
        names = self.inputs[2:]
        if self.coded and len(peepholes) == len(names):
            scale, zero = (
                np.repeat(v, z.shape[1] // len(self.gates)).reshape(-1, *[1] * (z.ndim - 2))
                for v in peepholes[-2:]
            )
            plain = replace(self, coded=False)
            return plain.reference((z.astype(c.dtype) - zero.astype(c.dtype)) * scale, c, *peepholes[:-2])
        if len(peepholes) != len(names):
            raise EdgeLstmError(f"{self.op_type}: peepholes", found=len(peepholes), expected=list(names))
        if z.ndim != c.ndim or z.shape[1] != len(self.gates) * c.shape[1]:
            raise EdgeLstmError(
                f"{self.op_type}: shapes of z and c",
                found=f"{list(z.shape)} and {list(c.shape)}",
                expected=f"z with {len(self.gates)} times c's channels on axis 1",
            )
        p = dict(zip(names, peepholes, strict=True))
        parts = dict(
            zip(self.gates, np.split(z.astype(c.dtype, copy=False), len(self.gates), 1), strict=True)
        )
        z_i = parts["i"] + p["p_i"] * c if self.peephole else parts["i"]
        i = self._gate(z_i)
        f = 1 - i if self.coupled else self._gate(parts["f"] + p["p_f"] * c if self.peephole else parts["f"])
        c_out = f * c + i * _activate(self.candidate, parts["g"])
        if self.cell_clip is not None:
            limit = c.dtype.type(np.float32(self.cell_clip))
            c_out = np.clip(c_out, -limit, limit)
        z_o = parts["o"] + p["p_o"] * c_out if self.peephole else parts["o"]
        return self._gate(z_o) * _activate(self.output, c_out), c_out

    def function(self, opset: int) -> onnx.FunctionProto:
        """The op's body in standard operators of ONNX ``opset``, its formals prefixed with the op's name.

        Raises EdgeLstmError for opsets that lack what the variant needs (cell_clip: 15, else 7).
        """
        import onnx.parser

        needed = 15 if self.cell_clip is not None else 13 if self.coded else 7
        if opset < needed:
            raise EdgeLstmError(f"{self.op_type} in ONNX opset {opset}", expected=f"opset {needed} or later")
        body = [f"{', '.join('z_' + g for g in self.gates)} = Split <axis = 1{self._split(opset)}> (z)"]
        if self.coded:
            # The names of the gates go to what the codes are worth.
            body = [line.replace("z_", "q_") for line in body]
            for name, value in (("scale", "z_scale"), ("zero", "z_zero_point")):
                split = ", ".join(f"{name}s_{g}" for g in self.gates)
                body.append(f"{split} = Split <axis = 0{self._split(opset)}> ({value})")
                body += [f"{name}_{g} = Squeeze ({name}s_{g})" for g in self.gates]
            body += [f"z_{g} = DequantizeLinear (q_{g}, scale_{g}, zero_{g})" for g in self.gates]
        z_i = z_f = z_o = ""
        if self.peephole:
            body += ["pc_i = Mul (p_i, c)", "s_i = Add (z_i, pc_i)"]
            z_i = "s_i"
            if not self.coupled:
                body += ["pc_f = Mul (p_f, c)", "s_f = Add (z_f, pc_f)"]
                z_f = "s_f"
        body.append(self._gate_text("i", z_i or "z_i"))
        if self.coupled:
            # 1 - sigmoid(x) = sigmoid(-x), and likewise for the hard sigmoid: no constant of unknown dtype needed.
            if self.gate == "sigmoid":
                body += [f"n_i = Neg ({z_i or 'z_i'})", "f = Sigmoid (n_i)"]
            else:
                body.append(
                    f"f = HardSigmoid <alpha = {-self.alpha!r}, beta = {1 - self.beta!r}> ({z_i or 'z_i'})"
                )
        else:
            body.append(self._gate_text("f", z_f or "z_f"))
        body += [f"g = {self.candidate.capitalize()} (z_g)", "fc = Mul (f, c)", "ig = Mul (i, g)"]
        if self.cell_clip is None:
            body.append("c_out = Add (fc, ig)")
        else:
            body += [
                "c_free = Add (fc, ig)",
                f"high = Constant <value_float = {float(self.cell_clip)!r}> ()",
                f"low = Constant <value_float = {-float(self.cell_clip)!r}> ()",
                "high_c = CastLike (high, c)",
                "low_c = CastLike (low, c)",
                "c_out = Clip (c_free, low_c, high_c)",
            ]
        if self.peephole:
            body += ["pc_o = Mul (p_o, c_out)", "s_o = Add (z_o, pc_o)"]
            z_o = "s_o"
        body += [
            self._gate_text("o", z_o or "z_o"),
            f"a = {self.output.capitalize()} (c_out)",
            "h = Mul (o, a)",
        ]
        function = onnx.parser.parse_function(
            f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
            f"{self.op_type} ({', '.join(self.inputs)}) => (h, c_out)\n{{\n" + "\n".join(body) + "\n}"
        )
        prefix = self.op_type.removeprefix(PREFIX)
        _prefix(function.input, prefix)
        _prefix(function.output, prefix)
        for node in function.node:
            _prefix(node.input, prefix)
            _prefix(node.output, prefix)
        return function

    def plugin_fields(self) -> dict[str, int | float]:
        """The fields of the CUDA kernel's plugin; 0 stands for off in ``cell_clip``."""
        return {
            "peephole": int(self.peephole),
            "hard_sigmoid": int(self.gate == "hard_sigmoid"),
            "alpha": self.alpha,
            "beta": self.beta,
            "candidate_relu": int(self.candidate == "relu"),
            "output_relu": int(self.output == "relu"),
            "cell_clip": self.cell_clip or 0.0,
            "coupled": int(self.coupled),
            "coded": int(self.coded),
        }

    def _split(self, opset: int) -> str:
        return f", num_outputs = {len(self.gates)}" if opset >= 18 else ""

    def _gate_text(self, out: str, value: str) -> str:
        if self.gate == "sigmoid":
            return f"{out} = Sigmoid ({value})"
        return f"{out} = HardSigmoid <alpha = {self.alpha!r}, beta = {self.beta!r}> ({value})"

    def _gate(self, x: Array) -> Array:
        if self.gate == "hard_sigmoid":
            # ONNX keeps attributes in float32, so that is what every form computes with.
            alpha, beta = (x.dtype.type(np.float32(value)) for value in (self.alpha, self.beta))
            y: Array = np.clip(alpha * x + beta, 0, 1)
            return y
        # tanh form: no overflow for large |x|.
        half = x.dtype.type(0.5)
        y = half * np.tanh(half * x) + half
        return y


def is_fused_gates(node: onnx.NodeProto) -> bool:
    """Whether ``node`` is a FusedGates op of any variant."""
    return node.domain == DOMAIN and node.op_type.startswith(PREFIX)


def _activate(name: CellActivation, x: Array) -> Array:
    y: Array = np.maximum(x, 0) if name == "relu" else np.tanh(x)
    return y


def _mangle(value: float) -> str:
    return repr(float(value)).replace(".", "p").replace("-", "m").replace("+", "")


def _number(text: str) -> float:
    return float(text.replace("p", ".").replace("m", "-"))


def _prefix(names: Any, prefix: str) -> None:
    names[:] = [f"{prefix}_{name}" if name else "" for name in names]
