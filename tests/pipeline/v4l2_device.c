/* A V4L2 camera in a regular file, for a process that has this library preloaded: FILE.camera is the device, what stands in FILE.camera.says
   is what it does (silent, gone, streamon, damaged, padded, output). Grey or YUYV, 64 x 48, 50 pictures a second; picture k is of value k. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 64, HEIGHT = 48, COUNT = 32, PITCH = 8192 };
static char device[1024], is_device[1024];
static unsigned char *memory[COUNT];
static int maps, waiting[COUNT], queued, streaming, taken;
static unsigned form = V4L2_PIX_FMT_GREY;
static long long began; /* us */

static int says(const char *word) {
    char name[1100], text[64] = "";
    snprintf(name, sizeof name, "%s.says", device);
    FILE *file = fopen(name, "r");
    if (!file) return 0;
    if (!fgets(text, sizeof text, file)) *text = 0;
    fclose(file);
    return strstr(text, word) != NULL;
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static int refuse(int error) {
    errno = error;
    return -1;
}

static int opened(const char *path, int flags, mode_t mode) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    size_t n = strlen(path);
    int file = real(path, flags, mode);
    if (file >= 0 && file < 1024) {
        is_device[file] = n > 7 && !strcmp(path + n - 7, ".camera");
        if (is_device[file]) snprintf(device, sizeof device, "%s", path);
    }
    return file;
}

#define OPEN(name)                                 \
    int name(const char *path, int flags, ...) {   \
        va_list rest;                              \
        va_start(rest, flags);                     \
        mode_t mode = va_arg(rest, int);           \
        va_end(rest);                              \
        return opened(path, flags, mode);          \
    }
OPEN(open)
OPEN(open64)

static void *mapped(void *to, size_t n, int how, int flags, int file, off_t at) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (!real) real = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    void *made = real(to, n, how, flags, file, at);
    if (file >= 0 && file < 1024 && is_device[file] && made != MAP_FAILED) memory[at / PITCH] = made, maps++;
    return made;
}

void *mmap(void *to, size_t n, int how, int flags, int file, off_t at) { return mapped(to, n, how, flags, file, at); }
void *mmap64(void *to, size_t n, int how, int flags, int file, off_t at) { return mapped(to, n, how, flags, file, at); }

int munmap(void *from, size_t n) {
    static int (*real)(void *, size_t);
    if (!real) real = (int (*)(void *, size_t))dlsym(RTLD_NEXT, "munmap");
    for (int k = 0; k < COUNT; k++)
        if (from && memory[k] == from) memory[k] = NULL, maps--, streaming = 0;
    return real(from, n);
}

static void describe(struct v4l2_format *f) {
    int each = form == V4L2_PIX_FMT_YUYV ? 2 : 1, row = WIDTH * each + (says("padded") ? 32 : 0);
    memset(&f->fmt, 0, sizeof f->fmt);
    f->fmt.pix = (struct v4l2_pix_format){.width = WIDTH, .height = HEIGHT, .pixelformat = form, .field = V4L2_FIELD_NONE,
        .bytesperline = row, .sizeimage = row * HEIGHT, .colorspace = V4L2_COLORSPACE_REC709,
        .quantization = V4L2_QUANTIZATION_FULL_RANGE};
}

static int dequeue(int file, struct v4l2_buffer *b) {
    for (;;) {
        if (says("gone")) return refuse(ENODEV);
        if (!says("silent") && now() >= began + taken * 20000LL) break;
        if (fcntl(file, F_GETFL) & O_NONBLOCK) return usleep(1000), refuse(EAGAIN);
        usleep(2000);
    }
    if (!queued) return refuse(EAGAIN);
    struct v4l2_format f;
    describe(&f);
    b->index = waiting[0];
    memmove(waiting, waiting + 1, --queued * sizeof *waiting);
    memset(memory[b->index], taken, f.fmt.pix.sizeimage);
    long long at = began + taken * 20000LL;
    b->timestamp.tv_sec = at / 1000000, b->timestamp.tv_usec = at % 1000000;
    b->flags = V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC | (says("damaged") && taken % 5 == 4 ? V4L2_BUF_FLAG_ERROR : 0);
    b->bytesused = f.fmt.pix.sizeimage;
    b->sequence = taken++;
    return 0;
}

int ioctl(int file, unsigned long request, ...) {
    static int (*real)(int, unsigned long, ...);
    va_list rest;
    va_start(rest, request);
    void *p = va_arg(rest, void *);
    va_end(rest);
    if (!real) real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    if (file < 0 || file >= 1024 || !is_device[file]) return real(file, request, p);
    struct v4l2_buffer *b = p;
    switch ((unsigned)request) {
    case VIDIOC_QUERYCAP:
        memset(p, 0, sizeof(struct v4l2_capability));
        ((struct v4l2_capability *)p)->capabilities = V4L2_CAP_STREAMING | (says("output") ? V4L2_CAP_VIDEO_OUTPUT : V4L2_CAP_VIDEO_CAPTURE);
        return 0;
    case VIDIOC_G_INPUT: return *(int *)p = 0;
    case VIDIOC_ENUMINPUT: {
        struct v4l2_input *input = p;
        unsigned index = input->index;
        memset(input, 0, sizeof *input);
        input->index = index, input->type = V4L2_INPUT_TYPE_CAMERA;
        return index ? refuse(EINVAL) : 0;
    }
    case VIDIOC_S_FMT: {
        struct v4l2_format *f = p;
        if (maps) return refuse(EBUSY);
        form = f->fmt.pix.pixelformat == V4L2_PIX_FMT_YUYV ? V4L2_PIX_FMT_YUYV : V4L2_PIX_FMT_GREY;
        describe(f);
        return 0;
    }
    case VIDIOC_G_FMT: describe(p); return 0;
    case VIDIOC_G_PARM:
    case VIDIOC_S_PARM: {
        struct v4l2_streamparm *s = p;
        s->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
        s->parm.capture.timeperframe = (struct v4l2_fract){1, 50};
        return 0;
    }
    case VIDIOC_REQBUFS: ((struct v4l2_requestbuffers *)p)->count = COUNT; queued = 0; return maps ? refuse(EBUSY) : 0;
    case VIDIOC_QUERYBUF: b->length = PITCH, b->m.offset = b->index * PITCH; return 0;
    case VIDIOC_QBUF: waiting[queued++] = b->index; return 0;
    case VIDIOC_STREAMON:
        if (says("streamon")) return refuse(ENOSPC);
        streaming = 1, taken = 0, began = now();
        return 0;
    case VIDIOC_STREAMOFF: streaming = 0, queued = 0; return 0;
    case VIDIOC_DQBUF: return streaming ? dequeue(file, b) : refuse(EINVAL);
    }
    return refuse(EINVAL);
}
