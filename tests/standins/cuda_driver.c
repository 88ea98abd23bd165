/* A stand-in for the CUDA driver (libcuda.so.1), of host memory. NOT a GPU, and no emulation of one.
 *
 * It lets the real cuda-bindings and all of our own code above them run on a machine without a GPU, and is strict where
 * the driver is: work put on a stream is done no sooner than somebody waits for it; a graph replays the addresses it
 * was captured with; a capture that copies from pageable memory is refused; calls need a current context; copies past the
 * end of an allocation are errors. Fresh memory holds 0xFF bytes, which are NaN in every floating type.
 *
 * Numbers of errors and attributes are those of cuda.h. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, ALREADY_REGISTERED = 712, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900,
       CAPTURE_INVALIDATED = 901 };
enum { COPY, HOST, RECORD, WAIT };
#define MAX_DEVICES 4

typedef unsigned long long Address;
/* Recorded for the `wanted`-th time, on `stream`; the `version`-th is done. */
typedef struct { int version, wanted; struct Stream *stream; } Event;
typedef struct Op { int kind; char *to, *from; size_t size; void (*call)(void *); void *argument; Event *event;
                    int version; struct Stream *stream; char *staged; struct Op *next; } Op;
typedef struct { Op *first, *last; } Queue;
typedef struct Stream { Queue queue; Queue *capture; int invalid; struct Stream *next; } Stream;
typedef struct Range { char *start; size_t size; int device, locked; struct Range *next; } Range;  /* locked: host memory */
typedef struct { int device; } Context;

static struct { int devices, major, minor, integrated, driver; size_t total, used; } machine;
static Context contexts[MAX_DEVICES];
static Range *ranges;
static Stream *streams;
static int live_streams, live_graphs, live_events, retained, failed;
static __thread Context *stack[16];
static __thread int depth;

/* ---- for the tests ---- */

void standin_configure(int devices, int major, int minor, int integrated, size_t total, int driver) {
    machine.devices = devices; machine.major = major; machine.minor = minor; machine.integrated = integrated;
    machine.total = total; machine.driver = driver; failed = 0;
}

/* Everything that was made and not freed. */
int standin_live(void) {
    int count = live_streams + live_graphs + live_events + retained;
    for (Range *r = ranges; r; r = r->next) count++;
    return count;
}

int standin_capturing(Stream *stream) { return stream->capture != NULL; }
int standin_depth(void) { return depth; }
/* What follows on any stream fails, as after an illegal access. */
void standin_fail(void) { failed = LAUNCH_FAILED; }
/* Whether [start, start + size) lies in one allocation of the device, or in locked memory. */
int standin_owns(char *start, size_t size) {
    for (Range *r = ranges; r; r = r->next)
        if (start >= r->start && start + size <= r->start + r->size) return 1;
    return 0;
}

/* ---- streams ---- */

static void append(Queue *queue, const Op *op) {
    Op *copy = malloc(sizeof *copy);
    *copy = *op;
    copy->next = NULL;
    if (queue->last) queue->last->next = copy; else queue->first = copy;
    queue->last = copy;
}

static void drain(Stream *stream);

static void perform(Op *op) {
    switch (op->kind) {
    case COPY: if (!failed) memmove(op->to, op->staged ? op->staged : op->from, op->size); break;
    case HOST: if (!failed) op->call(op->argument); break;
    case RECORD: op->event->version = op->version; break;
    case WAIT: if (op->stream && op->event->version < op->version) drain(op->stream); break;
    }
}

static void drain(Stream *stream) {
    while (stream->queue.first) {
        Op *op = stream->queue.first;
        stream->queue.first = op->next;
        if (!op->next) stream->queue.last = NULL;
        perform(op);
        free(op->staged);
        free(op);
    }
}

/* 0, 1 and 2 are handles of default streams. */
static Stream *real(Stream *stream) { return (Address)stream <= 2 ? NULL : stream; }

static int put(Stream *stream, Op op) {
    stream = real(stream);
    if (!depth) return INVALID_CONTEXT;
    if (failed) return failed;
    if (!stream) { perform(&op); free(op.staged); return OK; }
    append(stream->capture ? stream->capture : &stream->queue, &op);
    return OK;
}

void standin_drain(Stream *stream) { drain(stream); }

static Range *range_of(const char *address) {
    for (Range *r = ranges; r; r = r->next)
        if (address >= r->start && address < r->start + r->size) return r;
    return NULL;
}

/* ---- the driver's calls ---- */

int cuInit(unsigned flags) { (void)flags; return machine.devices ? OK : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = machine.driver; return machine.devices ? OK : NO_DEVICE; }
int cuDeviceGetCount(int *count) { *count = machine.devices; return machine.devices ? OK : NO_DEVICE; }
int cuDeviceGet(int *device, int index) { *device = index; return index < machine.devices ? OK : INVALID_DEVICE; }

int cuDeviceGetName(char *name, int size, int device) {
    if (device >= machine.devices) return INVALID_DEVICE;
    strncpy(name, "stand-in, no GPU", size);
    return OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device >= machine.devices) return INVALID_DEVICE;
    *value = attribute == 75 ? machine.major : attribute == 76 ? machine.minor : attribute == 18 ? machine.integrated :
             attribute == 16 ? 6 : attribute == 97 ? 100 * 1024 : 0;  /* multiprocessors; shared memory a block may ask for */
    return OK;
}

int cuDevicePrimaryCtxRetain(Context **context, int device) {
    contexts[device].device = device;
    *context = &contexts[device];
    retained++;
    return OK;
}

int cuDevicePrimaryCtxRelease(int device) { (void)device; retained--; return OK; }

int cuCtxPushCurrent(Context *context) {
    if (depth == 16) return INVALID_CONTEXT;
    stack[depth++] = context;
    return OK;
}

int cuCtxPopCurrent(Context **context) {
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth];
    return OK;
}

int cuMemGetInfo(size_t *free_, size_t *total) {
    *free_ = machine.total - machine.used;
    *total = machine.total;
    return depth ? OK : INVALID_CONTEXT;
}

int cuMemAlloc(Address *address, size_t size) {
    if (!depth) return INVALID_CONTEXT;
    if (size == 0) return INVALID_VALUE;
    if (machine.used + size > machine.total) return OUT_OF_MEMORY;
    Range *range = malloc(sizeof *range);
    range->size = size;
    range->start = aligned_alloc(256, (size + 255) / 256 * 256);
    memset(range->start, 0xFF, size);
    range->device = stack[depth - 1]->device;
    range->locked = 0;
    range->next = ranges;
    ranges = range;
    machine.used += size;
    *address = (Address)range->start;
    return OK;
}

static int forget(char *start, int device_memory) {
    for (Range **link = &ranges; *link; link = &(*link)->next) {
        Range *range = *link;
        if (range->start != start || range->locked == device_memory) continue;
        *link = range->next;
        if (device_memory) {
            memset(start, 0xFF, range->size);
            machine.used -= range->size;
            free(start);
        }
        free(range);
        return OK;
    }
    return INVALID_VALUE;
}

/* Waits for whatever may still use the memory. */
int cuMemFree(Address address) {
    if (!depth) return INVALID_CONTEXT;
    for (Stream *stream = streams; stream; stream = stream->next) drain(stream);
    return forget((char *)address, 1);
}

int cuMemHostRegister(void *start, size_t size, unsigned flags) {
    (void)flags;
    if (!depth) return INVALID_CONTEXT;
    if ((Address)start % 4096 || size % 4096) return INVALID_VALUE;
    for (Range *r = ranges; r; r = r->next)
        if (r->start < (char *)start + size && (char *)start < r->start + r->size) return ALREADY_REGISTERED;
    Range *range = malloc(sizeof *range);
    *range = (Range){start, size, stack[depth - 1]->device, 1, ranges};
    ranges = range;
    return OK;
}

int cuMemHostUnregister(void *start) { return forget(start, 0); }
int cuMemHostGetDevicePointer(Address *address, void *start, unsigned flags) {
    (void)flags;
    *address = (Address)start;
    return range_of(start) ? OK : INVALID_VALUE;
}

int cuPointerGetAttribute(void *value, int attribute, Address address) {
    Range *range = range_of((char *)address);
    int on_device = range && !range->locked;
    switch (attribute) {
    case 1: *(Context **)value = on_device ? &contexts[range->device] : NULL; break;
    case 2: *(unsigned *)value = on_device ? 2 : 1; break;  /* memory type */
    case 3: *(Address *)value = range ? address : 0; break;
    case 4: *(Address *)value = on_device ? 0 : address; break;
    case 8: *(unsigned *)value = 0; break;                  /* managed */
    case 9: *(int *)value = range ? range->device : -2; break;
    default: return INVALID_VALUE;
    }
    return range ? OK : INVALID_VALUE;
}

int cuPointerGetAttributes(unsigned count, int *attributes, void **values, Address address) {
    for (unsigned k = 0; k < count; k++) {
        if (!range_of((char *)address)) return OK;  /* as the driver does for memory it does not know */
        int error = cuPointerGetAttribute(values[k], attributes[k], address);
        if (error) return error;
    }
    return OK;
}

int cuStreamCreate(Stream **stream, unsigned flags) {
    (void)flags;
    *stream = calloc(1, sizeof **stream);
    (*stream)->next = streams;
    streams = *stream;
    live_streams++;
    return depth ? OK : INVALID_CONTEXT;
}

int cuStreamDestroy(Stream *stream) {
    drain(stream);
    for (Stream **link = &streams; *link; link = &(*link)->next)
        if (*link == stream) { *link = stream->next; break; }
    free(stream);
    live_streams--;
    return OK;
}

int cuStreamSynchronize(Stream *stream) {
    stream = real(stream);
    if (!depth) return INVALID_CONTEXT;
    if (stream) {
        if (stream->capture) { stream->invalid = 1; return CAPTURE_UNSUPPORTED; }
        drain(stream);
    }
    return failed;
}

int cuCtxSynchronize(void) {
    if (!depth) return INVALID_CONTEXT;
    for (Stream *s = streams; s; s = s->next) {
        if (s->capture) { s->invalid = 1; return CAPTURE_UNSUPPORTED; }
        drain(s);
    }
    return failed;
}

int cuMemcpyAsync(Address to, Address from, size_t size, Stream *stream) {
    stream = real(stream);
    if (!depth) return INVALID_CONTEXT;
    Range *target = range_of((char *)to), *source = range_of((char *)from);
    if ((target && (char *)to + size > target->start + target->size) ||
        (source && (char *)from + size > source->start + source->size)) return INVALID_VALUE;
    Op op = {.kind = COPY, .to = (char *)to, .from = (char *)from, .size = size};
    if (stream && stream->capture && (!target || !source)) { stream->invalid = 1; return CAPTURE_UNSUPPORTED; }
    if (!source) {  /* pageable: read before the call is back */
        op.staged = malloc(size ? size : 1);
        memcpy(op.staged, op.from, size);
    }
    int error = put(stream, op);
    if (!error && !target && stream) drain(stream);  /* pageable: written before the call is back */
    return error;
}

int cuLaunchHostFunc(Stream *stream, void (*call)(void *), void *argument) {
    return put(stream, (Op){.kind = HOST, .call = call, .argument = argument});
}

/* Kernels: a module is not looked at; a launch is handed to the test, which plays the kernel. The parameter is the caller's
 * again when the call is back. More than 48 KiB of shared memory have to be asked for, as on a GPU. */
typedef struct { char name[64]; unsigned shared; } Function;
typedef int OnLaunch(const char *name, unsigned blocks, unsigned threads, unsigned shared, int together, void *parameter,
                     Stream *stream);
static OnLaunch *on_launch;
void standin_on_launch(OnLaunch *call) { on_launch = call; }

int cuModuleLoadData(void **module, const void *image) {
    *module = (void *)image;
    return depth ? OK : INVALID_CONTEXT;
}

int cuModuleGetFunction(Function **function, void *module, const char *name) {
    (void)module;
    *function = calloc(1, sizeof **function);  /* for as long as the process */
    strncpy((*function)->name, name, sizeof (*function)->name - 1);
    return OK;
}

int cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute != 8) return INVALID_VALUE;  /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
    function->shared = (unsigned)value;
    return OK;
}

static int launch(Function *f, const unsigned *grid, const unsigned *block, unsigned shared, Stream *stream, void **parameters,
                  int together) {
    if (!depth) return INVALID_CONTEXT;
    if (failed) return failed;
    if (!on_launch || grid[1] * grid[2] * block[1] * block[2] != 1 || (shared > 48 * 1024 && shared > f->shared) || !parameters)
        return INVALID_VALUE;
    return on_launch(f->name, grid[0], block[0], shared, together, parameters[0], stream);
}

int cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   Stream *stream, void **parameters, void **extra) {
    (void)extra;
    return launch(f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, parameters, 0);
}

int cuLaunchCooperativeKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                              unsigned shared, Stream *stream, void **parameters) {
    return launch(f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, parameters, 1);
}

int cuMemcpyHtoD(Address to, const void *from, size_t size) {
    Range *target = range_of((char *)to);
    if (!depth) return INVALID_CONTEXT;
    if (!target || (char *)to + size > target->start + target->size) return INVALID_VALUE;
    memcpy((void *)to, from, size);
    return failed;
}

int cuEventCreate(Event **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof **event);
    live_events++;
    return OK;
}

/* Work that waits for it may still come, so its few bytes stay. */
int cuEventDestroy(Event *event) { (void)event; live_events--; return OK; }

int cuEventRecord(Event *event, Stream *stream) {
    event->stream = real(stream);
    return put(stream, (Op){.kind = RECORD, .event = event, .version = ++event->wanted});
}

int cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
    (void)flags;
    return put(stream, (Op){.kind = WAIT, .event = event, .version = event->wanted, .stream = event->stream});
}

int cuStreamBeginCapture(Stream *stream, int mode) {
    (void)mode;
    stream->capture = calloc(1, sizeof *stream->capture);
    stream->invalid = 0;
    live_graphs++;
    return depth ? OK : INVALID_CONTEXT;
}

static void free_graph(Queue *graph) {
    for (Op *op = graph->first; op;) { Op *next = op->next; free(op); op = next; }
    free(graph);
    live_graphs--;
}

int cuStreamEndCapture(Stream *stream, Queue **graph) {
    *graph = stream->capture;
    stream->capture = NULL;
    if (!stream->invalid) return OK;
    free_graph(*graph);
    *graph = NULL;
    return CAPTURE_INVALIDATED;
}

int cuGraphInstantiateWithFlags(Queue **executable, Queue *graph, unsigned long long flags) {
    (void)flags;
    *executable = calloc(1, sizeof **executable);
    for (Op *op = graph->first; op; op = op->next) append(*executable, op);
    live_graphs++;
    return OK;
}

int cuGraphLaunch(Queue *executable, Stream *stream) {
    for (Op *op = executable->first; op; op = op->next) {
        int error = put(stream, *op);
        if (error) return error;
    }
    return OK;
}

int cuGraphExecDestroy(Queue *executable) { free_graph(executable); return OK; }
int cuGraphDestroy(Queue *graph) { free_graph(graph); return OK; }

int cuGetErrorName(int error, const char **name) { (void)error; *name = "CUDA_ERROR"; return OK; }
int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == NO_DEVICE ? "no CUDA-capable device is detected"
          : error == LAUNCH_FAILED ? "unspecified launch failure" : "an error";
    return OK;
}

/* How cuda-bindings finds all of the above; what is missing here it reports as missing when it is called. */
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    (void)version; (void)flags;
    static void *self;
    Dl_info info;
    if (!self && dladdr((void *)cuInit, &info)) self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = self ? dlsym(self, name) : NULL;
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : 500;
}
