// The arithmetic of FusedGates, in float32, for the host and the device alike. Equations: edgelstm/graph/gates.py.
//
// The device has 16 lanes for 2^x and 1/x where it has 128 for multiplications, so these are what a step costs.
// Activations are therefore kept as fractions, and a product of two takes one reciprocal: 5 powers and 3 reciprocals
// for an element with tanh and sigmoids.
#pragma once

#include "edgelstm/fused_gates_numbers.h"

namespace edgelstm {

// The variant without options, known to the compiler. FusedGatesVariant has the same members.
template <bool kPeephole>
struct StandardVariant {
    static constexpr bool peephole = kPeephole;
    static constexpr bool hardSigmoid = false;
    static constexpr float alpha = 0.2F;
    static constexpr float beta = 0.5F;
    static constexpr bool candidateRelu = false;
    static constexpr bool outputRelu = false;
    static constexpr float cellClip = 0.0F;
    static constexpr bool coupled = false;
};

inline bool isStandard(FusedGatesVariant const& v) {
    return !v.hardSigmoid && !v.candidateRelu && !v.outputRelu && v.cellClip == 0.0F && !v.coupled;
}

struct Fraction {
    float above;
    float below;
};

EDGELSTM_HD float worth(Fraction a) { return a.above * reciprocalApprox(a.below); }

EDGELSTM_HD float product(Fraction a, Fraction b) {
    return (a.above * b.above) * reciprocalApprox(a.below * b.below);
}

constexpr float kLog2E = 0x1.715476p+0F;        // log2(e), rounded to float
constexpr float kLog2ELow = 0x1.4AE0CP-26F;     // what that rounding left off
constexpr float kLn2 = 0x1.62E43P-1F;

// 1 / (1 + e^-x). kExact corrects e^-x for the rounding of its exponent, which is otherwise off by up to |x| ulp: below
// the error that a half or bf16 x brings along, but far above that of a float32 x.
template <bool kExact>
EDGELSTM_HD Fraction sigmoid(float x) {
    if constexpr (kExact) {
        // Past 88 either side the result is 1 or below the smallest normal float. Infinities have no residue.
        float const y = clamped(x, 88.0F);
        float const exponent = y * -kLog2E;
        float const residue = fmaf(y, -kLog2ELow, fmaf(y, -kLog2E, -exponent));
        float const power = exp2Approx(exponent);
        return {1.0F, 1.0F + fmaf(power, residue * kLn2, power)};
    }
    return {1.0F, 1.0F + exp2Approx(x * -kLog2E)};
}

// clip(alpha x + beta, 0, 1); NaN stays NaN.
EDGELSTM_HD Fraction hardSigmoid(float x, float alpha, float beta) {
    float const y = fmaf(alpha, x, beta);
    float const low = y < 0.0F ? 0.0F : y;
    return {low > 1.0F ? 1.0F : low, 1.0F};
}

// Below 0.5 an odd polynomial (minimax in the relative error, 1.5e-8 of it), above it (1 - e^-2x) / (1 + e^-2x), which
// would cancel near zero.
EDGELSTM_HD Fraction tanh(float x) {
    float const square = x * x;
    float poly = fmaf(0x1.1A7C08P-6F, square, -0x1.B28C76P-5F);
    poly = fmaf(poly, square, 0x1.10E9FCP-3F);
    poly = fmaf(poly, square, -0x1.5554D6P-2F);
    float const near = fmaf(poly * square, x, x);
    float const power = exp2Approx(fabsf(x) * (-2.0F * kLog2E));
    bool const small = fabsf(x) < 0.5F;
    return {small ? near : copysignf(1.0F - power, x), small ? 1.0F : 1.0F + power};
}

EDGELSTM_HD Fraction relu(float x) { return {x < 0.0F ? 0.0F : x, 1.0F}; }

template <bool kExact, class Variant>
EDGELSTM_HD Fraction gate(Variant const& v, float x) {
    return v.hardSigmoid ? hardSigmoid(x, v.alpha, v.beta) : sigmoid<kExact>(x);
}

// One element's pre-activations (f is not read when coupled) and peephole weights (read with peepholes only).
struct GateInputs {
    float i, f, g, o;
    float pI, pF, pO;
};

struct CellOutputs {
    float h;
    float c;
};

template <bool kExact, class Variant>
EDGELSTM_HD CellOutputs cell(Variant const& v, GateInputs z, float c) {
    float const zI = v.peephole ? fmaf(z.pI, c, z.i) : z.i;
    Fraction const input = gate<kExact>(v, zI);
    float kept;
    if (v.coupled) {
        // 1 - sigmoid(x) = sigmoid(-x), which loses nothing when f is small.
        kept = v.hardSigmoid ? (1.0F - input.above) * c : worth(sigmoid<kExact>(-zI)) * c;
    } else {
        kept = worth(gate<kExact>(v, v.peephole ? fmaf(z.pF, c, z.f) : z.f)) * c;
    }
    float cOut = kept + product(input, v.candidateRelu ? relu(z.g) : tanh(z.g));
    if (v.cellClip > 0.0F) {
        cOut = clamped(cOut, v.cellClip);
    }
    float const zO = v.peephole ? fmaf(z.pO, cOut, z.o) : z.o;
    return {product(gate<kExact>(v, zO), v.outputRelu ? relu(cOut) : tanh(cOut)), cOut};
}

// saturate(round half to even(h / scale)) as a whole float, 0 for NaN; inverse is 1 / scale rounded to nearest.
// The quotient is corrected by its remainder, which makes it the one that a division gives.
EDGELSTM_HD float codeOf(float h, float scale, float inverse) {
    float const guess = h * inverse;
    float const quotient = fabsf(guess) < 256.0F ? fmaf(fmaf(-guess, scale, h), inverse, guess) : guess;
    float const code = rintf(quotient > 127.0F ? 127.0F : quotient < -128.0F ? -128.0F : quotient);
    return code == code ? code : 0.0F;
}

}  // namespace edgelstm
