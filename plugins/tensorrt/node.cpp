#include "node.h"

#include "edgelstm/fused_gates.h"
#include "log.h"

namespace edgelstm::trt {
namespace {

using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr char const* kRoleNames[] = {"z", "c", "p_i", "p_f", "p_o", "h_old", "active", "h", "c_out", "non_finite"};

char const* nameOf(Role role) noexcept { return kRoleNames[static_cast<std::int32_t>(role)]; }

bool isPeephole(Role role) noexcept { return role >= Role::kPeepI && role <= Role::kPeepO; }

// Layouts with the channels of an [N, C, ...] tensor together; TensorRT has one name for images, one for volumes.
struct LayoutRow {
    TensorFormat format;
    std::int32_t rank;  // 0: any
    Layout layout;
};

constexpr LayoutRow kLayouts[] = {
    {TensorFormat::kLINEAR, 0, Layout::kLinear},  {TensorFormat::kHWC8, 4, Layout::kHwc8},
    {TensorFormat::kCHW32, 4, Layout::kChw32},    {TensorFormat::kDHWC8, 5, Layout::kHwc8},
    {TensorFormat::kCDHW32, 5, Layout::kChw32},
};

// False for types and layouts that no kernel has.
bool formOf(PluginTensorDesc const& tensor, TensorForm& form) noexcept {
    for (LayoutRow const& row : kLayouts) {
        if (row.format == tensor.format && (row.rank == 0 || row.rank == tensor.dims.nbDims)) {
            // The numbers are the same; isSupported() knows which of them there are kernels for.
            form = {static_cast<DataType>(tensor.type), row.layout};
            return form.type != DataType::kAny;
        }
    }
    return false;
}

bool isLinear(PluginTensorDesc const& tensor, nvinfer1::DataType type) noexcept {
    return tensor.format == TensorFormat::kLINEAR && tensor.type == type;
}

std::string text(Dims const& dims) {
    std::string text = "[";
    for (std::int32_t i = 0; i < dims.nbDims; ++i) {
        text += (i != 0 ? ", " : "") + (dims.d[i] < 0 ? std::string("?") : std::to_string(dims.d[i]));
    }
    return text + "]";
}

// The product of the dimensions from `first` on; -1 if one of them is not known.
std::int64_t volume(Dims const& dims, std::int32_t first) noexcept {
    std::int64_t product = 1;
    for (std::int32_t i = first; i < dims.nbDims; ++i) {
        if (dims.d[i] < 0) {
            return -1;
        }
        product *= dims.d[i];
    }
    return product;
}

bool mayBe(std::int64_t size, std::int64_t other) noexcept { return size == other || size < 0 || other < 0; }

}  // namespace

Node::Node(Fields const& fields) : mFields(fields) {
    auto add = [this](Role role, bool present = true) {
        if (present) {
            mRoles[mInputs + mOutputs] = role;
            ++(role < Role::kH ? mInputs : mOutputs);
        }
    };
    bool const peephole = fields.peephole != 0;
    bool const masked = fields.masked != 0;
    add(Role::kZ);
    add(Role::kC);
    add(Role::kPeepI, peephole);
    add(Role::kPeepF, peephole && fields.coupled == 0);
    add(Role::kPeepO, peephole);
    add(Role::kHOld, masked);
    add(Role::kActive, masked);
    add(Role::kH);
    add(Role::kCOut);
    add(Role::kNonFinite, fields.countNonFinite != 0);
}

std::int32_t Node::position(Role role) const noexcept {
    for (std::int32_t i = 0; i < mInputs + mOutputs; ++i) {
        if (mRoles[i] == role) {
            return i;
        }
    }
    return -1;
}

std::int32_t Node::aliasedInput(std::int32_t output) const noexcept {
    bool const inPlace = mFields.inPlace != 0 && output >= 0 && output < mOutputs;
    return inPlace && mRoles[mInputs + output] == Role::kCOut ? position(Role::kC) : -1;
}

nvinfer1::DataType Node::outputType(std::int32_t output, nvinfer1::DataType const* types) const noexcept {
    switch (mRoles[mInputs + output]) {
        case Role::kH: return mFields.hType < 0 ? types[0] : static_cast<nvinfer1::DataType>(mFields.hType);
        case Role::kNonFinite: return nvinfer1::DataType::kINT32;
        default: return types[1];
    }
}

nvinfer1::DimsExprs Node::outputShape(std::int32_t output, nvinfer1::DimsExprs const* shapes) const noexcept {
    nvinfer1::DimsExprs shape = shapes[1];
    if (mRoles[mInputs + output] == Role::kNonFinite) {
        shape.nbDims = 1;  // one number a stream
    }
    return shape;
}

bool Node::supports(std::int32_t position, PluginTensorDesc const* tensors) const noexcept {
    if (position < 0 || position >= mInputs + mOutputs) {
        return false;
    }
    Role const role = mRoles[position];
    PluginTensorDesc const& own = tensors[position];
    if (role == Role::kActive || role == Role::kNonFinite) {
        return isLinear(own, nvinfer1::DataType::kINT32);
    }
    if (isPeephole(role)) {
        return isLinear(own, tensors[1].type);
    }
    if (role == Role::kCOut) {
        return own.type == tensors[1].type && own.format == tensors[1].format;
    }
    std::int32_t const old = this->position(Role::kHOld);
    if (role == Role::kH && old >= 0 && (own.type != tensors[old].type || own.format != tensors[old].format)) {
        return false;
    }
    // What comes after `position` is not known yet, so it may be anything that some kernel takes.
    FusedGatesForms forms;
    bool known = formOf(tensors[0], forms.z);
    nvinfer1::DataType const types[] = {tensors[0].type, tensors[0].type};
    forms.h.type = static_cast<DataType>(outputType(this->position(Role::kH) - mInputs, types));
    known = known && (position < 1 || formOf(tensors[1], forms.c));
    if (role == Role::kHOld || role == Role::kH) {
        DataType const declared = forms.h.type;
        known = known && formOf(own, forms.h) && forms.h.type == declared;
    }
    return known && isSupported(forms);
}

std::string Node::checkCount(std::int32_t inputs, std::int32_t outputs) const {
    if (inputs == mInputs && outputs == mOutputs) {
        return {};
    }
    std::string names;
    for (std::int32_t i = 0; i < mInputs; ++i) {
        names += (i != 0 ? ", " : "") + std::string(nameOf(mRoles[i]));
    }
    return "expected inputs " + names + " and " + std::to_string(mOutputs) + " outputs, found " +
           std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs";
}

std::string Node::checkShapes(PluginTensorDesc const* inputs) const {
    Dims const& z = inputs[0].dims;
    Dims const& c = inputs[1].dims;
    std::int64_t const gates = mFields.coupled != 0 ? 3 : 4;
    bool fits = c.nbDims >= 2 && z.nbDims == c.nbDims;
    for (std::int32_t i = 0; fits && i < c.nbDims; ++i) {
        fits = i == 1 ? mayBe(z.d[1], c.d[1] < 0 ? -1 : gates * c.d[1]) : mayBe(z.d[i], c.d[i]);
    }
    if (!fits) {
        return "z must be [N, " + std::to_string(gates) + " C, ...] and c [N, C, ...], found " + text(z) + " and " +
               text(c);
    }
    for (std::int32_t i = 2; i < mInputs; ++i) {
        Role const role = mRoles[i];
        Dims const& dims = inputs[i].dims;
        bool good = true;
        if (isPeephole(role)) {
            std::int64_t const size = volume(dims, 0);
            good = mayBe(size, c.d[1]) || mayBe(size, volume(c, 1));
        } else if (role == Role::kActive) {
            good = dims.nbDims == 1 && mayBe(dims.d[0], c.d[0]);
        } else {
            good = dims.nbDims == c.nbDims;
            for (std::int32_t k = 0; good && k < c.nbDims; ++k) {
                good = mayBe(dims.d[k], c.d[k]);
            }
        }
        if (!good) {
            return std::string(nameOf(role)) + " has shape " + text(dims) + ", which does not go with c " + text(c) +
                   ": expected " +
                   (isPeephole(role)         ? "one number a channel, or one a channel and place"
                    : role == Role::kActive ? "one number a stream"
                                            : "the same");
        }
    }
    return {};
}

std::int32_t Node::launch(PluginTensorDesc const* inputDescs, PluginTensorDesc const* outputDescs,
                          void const* const* inputs, void* const* outputs, cudaStream_t stream) const noexcept {
    Dims const& c = inputDescs[1].dims;
    FusedGatesParams params;
    params.variant = {mFields.peephole != 0,   mFields.hardSigmoid != 0, mFields.alpha,    mFields.beta,
                      mFields.candidateRelu != 0, mFields.outputRelu != 0, mFields.cellClip, mFields.coupled != 0};
    params.hScale = mFields.hScale;
    params.streams = static_cast<std::int32_t>(c.d[0]);
    params.channels = static_cast<std::int32_t>(c.d[1]);
    params.spatial = volume(c, 2);
    for (std::int32_t i = 0; i < mInputs + mOutputs; ++i) {
        bool const isInput = i < mInputs;
        void const* in = isInput ? inputs[i] : nullptr;
        void* out = isInput ? nullptr : outputs[i - mInputs];
        // All values of a map count a channel's places too, so a map of one place is one number a channel.
        Peephole const peephole{in, isInput && volume(inputDescs[i].dims, 0) != c.d[1]};
        switch (mRoles[i]) {
            case Role::kZ: params.z = in; break;
            case Role::kC: params.c = in; break;
            case Role::kPeepI: params.pI = peephole; break;
            case Role::kPeepF: params.pF = peephole; break;
            case Role::kPeepO: params.pO = peephole; break;
            case Role::kHOld: params.hOld = in; break;
            case Role::kActive: params.active = static_cast<std::int32_t const*>(in); break;
            case Role::kH: params.h = out; break;
            case Role::kCOut: params.cOut = out; break;
            case Role::kNonFinite: params.nonFinite = static_cast<std::int32_t*>(out); break;
        }
    }
    bool const known = formOf(inputDescs[0], params.forms.z) && formOf(inputDescs[1], params.forms.c) &&
                       formOf(outputDescs[0], params.forms.h);
    cudaError_t const error = known ? fusedGates(params, stream) : cudaErrorInvalidValue;
    if (error == cudaErrorInvalidValue) {
        char const* why = known ? whyRefused(params) : "no kernel for these types and layouts";
        report(why != nullptr ? why : "CUDA refuses the launch");
    }
    return static_cast<std::int32_t>(error);
}

}  // namespace edgelstm::trt
