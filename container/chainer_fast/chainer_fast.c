// This library computes matrix products and loops over float32 arrays for chainer_fast.py, large ones in threads.
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#if defined __x86_64__ && __GNUC__ >= 12 && !defined __clang__
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
#ifdef __x86_64__
#include <pmmintrin.h>
#define PAUSE __builtin_ia32_pause()
#define SPINS 30000  // some 0.7 ms: spinning through Python's pause between two layers costs less than waking
#elif defined __aarch64__
#define PAUSE __asm__ volatile("isb")  // isb waits some 14 ns; on most CPUs `yield` does not wait
#define SPINS 50000
#else
#define PAUSE sched_yield()
#define SPINS 1000
#endif

struct array {  // the first members of NumPy's PyArrayObject
    long references;
    void *type, *data;
};

// The type of cblas_sgemm; the BLAS must use one thread.
typedef void sgemm(int order, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                   const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
typedef void task(const void *arguments, long part, long parts);  // does one of several parts of a loop
enum {ROWS = 101, PLAIN = 111, TRANSPOSED = 112, FEW = 64};

static sgemm *gemm;
static int threads;

// The team is the caller and its threads, which wait for the next round, spinning at first.
static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    atomic_long round, working;
    long size, asleep;
    task *work;
    const void *arguments;
} team;

// Runs a task with numbers under 1.2e-38 taken as zero: CPUs take a hundred times as long for them, and Adam's averages
// of gradients that have become zero (black pixels, units that no image activates) decay through that range.
static void flushing(task *work, const void *arguments, long part, long parts) {
#ifdef __x86_64__
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    work(arguments, part, parts);
    _mm_setcsr(before);
#elif defined __aarch64__
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | 1 << 24) : "memory");
    work(arguments, part, parts);
    __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
#else
    work(arguments, part, parts);
#endif
}

// Runs in each thread of the team: does its part of each round.
static void *member(void *part) {
    for (long round = 1;; round++) {
        for (int spins = 0; atomic_load(&team.round) < round; spins++) {
            if (spins < SPINS) {
                PAUSE;
                continue;
            }
            pthread_mutex_lock(&team.lock);
            team.asleep++;
            while (atomic_load(&team.round) < round) pthread_cond_wait(&team.wake, &team.lock);
            team.asleep--;
            pthread_mutex_unlock(&team.lock);
        }
        flushing(team.work, team.arguments, (long)part, team.size);
        atomic_fetch_sub(&team.working, 1);
    }
    return 0;
}

// Empties the team, at the start and in a child process after fork(), which has none of the threads.
static void disband(void) {
    pthread_mutex_init(&team.busy, 0);
    pthread_mutex_init(&team.lock, 0);
    pthread_cond_init(&team.wake, 0);
    team.round = team.working = team.size = team.asleep = 0;
}

void set_up(sgemm *gemm_, int threads_) {
    gemm = gemm_, threads = threads_;
    disband();
    pthread_atfork(0, 0, disband);
}

// Runs a task in as many parts as there are threads; in one part if it is small or the team is busy.
static void together(task *work, const void *arguments, long operations) {
    if (threads < 2 || operations < 1 << 18 || pthread_mutex_trylock(&team.busy)) {
        flushing(work, arguments, 0, 1);
        return;
    }
    pthread_t id;
    if (!team.size)
        for (team.size = 1; team.size < threads; team.size++)
            if (pthread_create(&id, 0, member, (void *)team.size) || pthread_detach(id)) break;
    team.work = work, team.arguments = arguments;
    atomic_store(&team.working, team.size - 1);
    pthread_mutex_lock(&team.lock);
    atomic_fetch_add(&team.round, 1);
    if (team.asleep) pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.lock);
    flushing(work, arguments, 0, team.size);
    for (int spins = 0; atomic_load(&team.working); spins++)
        if (spins < SPINS) PAUSE;
        else sched_yield();
    pthread_mutex_unlock(&team.busy);
}

// Returns the index at which a part begins: a multiple of 16 floats, a cache line.
static long start(long n, long part, long parts) {
    return part == parts ? n : n * part / parts / 16 * 16;
}

struct adam {
    float *p, *m, *v;
    const float *g;
    long n;
    float beta1, beta2, alpha, eps;  // beta1 and beta2 are 1 - Chainer's
};

FOR_EACH_CPU static void adam_loop(const struct adam *a, long from, long to) {
    float *restrict p = a->p, *restrict m = a->m, *restrict v = a->v;
    const float *restrict g = a->g;
    const float beta1 = a->beta1, beta2 = a->beta2, alpha = a->alpha, eps = a->eps;
    for (long i = from; i < to; i++) {
        m[i] += beta1 * (g[i] - m[i]);
        v[i] += beta2 * (g[i] * g[i] - v[i]);
        p[i] -= alpha * m[i] / (sqrtf(v[i]) + eps);
    }
}

static void adam_part(const void *a_, long part, long parts) {
    const struct adam *a = a_;
    adam_loop(a, start(a->n, part, parts), start(a->n, part + 1, parts));
}

void adam(struct array *p, struct array *m, struct array *v, struct array *g, long n,
          float beta1, float beta2, float alpha, float eps) {
    struct adam a = {p->data, m->data, v->data, g->data, n, beta1, beta2, alpha, eps};
    together(adam_part, &a, 10 * n);
}

struct linear {
    const float *x, *W, *b, *gy;
    float *y, *gx, *gW;
    long rows, in, out;
};

FOR_EACH_CPU static void add_bias(const struct linear *a, long from, long to) {
    float *restrict y = a->y;
    const float *restrict b = a->b;
    for (long i = 0; i < a->rows; i++, y += a->out)
        for (long j = from; j < to; j++) y[j] += b[j];
}

// Computes products of rows of x and of W, from i and j on. A row's sums have one order, whatever the other rows.
static inline __attribute__((always_inline)) void dots(const struct linear *a, long i, long j, long to,
                                                       const int rows, const int columns) {
    typedef float lanes __attribute__((vector_size(32), aligned(4)));
    const long in = a->in;
    const float *x = a->x + i * in, *W[6];
    lanes sums[4][6] = {0};
    for (int c = 0; c < columns; c++) W[c] = a->W + (j + c < to ? j + c : to - 1) * in;
    long k = 0;
    for (; k + 8 <= in; k += 8)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++)
                sums[r][c] += *(const lanes *)(x + r * in + k) * *(const lanes *)(W[c] + k);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns && j + c < to; c++) {
            float sum = a->b[j + c];
            for (int l = 0; l < 8; l++) sum += sums[r][c][l];
            for (long l = k; l < in; l++) sum += x[r * in + l] * W[c][l];
            a->y[(i + r) * a->out + j + c] = sum;
        }
}

FOR_EACH_CPU static void few_rows(const struct linear *a, long from, long to) {
    for (long j = from; j < to; j += 6) {  // at most twelve sums at a time, which fit the registers
        long i = 0;
        for (; i + 4 <= a->rows; i += 4) {
            dots(a, i, j, to, 4, 3);
            if (j + 3 < to) dots(a, i, j + 3, to, 4, 3);
        }
        if (a->rows - i >= 2) dots(a, i, j, to, 2, 6), i += 2;
        if (a->rows - i == 1) dots(a, i, j, to, 1, 6);
    }
}

static void linear_part(const void *a_, long part, long parts) {
    const struct linear *a = a_;
    long from = start(a->out, part, parts), to = start(a->out, part + 1, parts);
    if (from == to) return;
    if (a->rows <= FEW) {  // sgemm would first copy W
        few_rows(a, from, to);
        return;
    }
    gemm(ROWS, PLAIN, TRANSPOSED, a->rows, to - from, a->in, 1, a->x, a->in, a->W + from * a->in, a->in,
         0, a->y + from, a->out);
    add_bias(a, from, to);
}

static void grad_data_part(const void *a_, long part, long parts) {
    const struct linear *a = a_;
    long from = start(a->in, part, parts), to = start(a->in, part + 1, parts);
    if (from < to)
        gemm(ROWS, PLAIN, PLAIN, a->rows, to - from, a->out, 1, a->gy, a->out, a->W + from, a->in,
             0, a->gx + from, a->in);
}

static void grad_weight_part(const void *a_, long part, long parts) {
    const struct linear *a = a_;
    long from = start(a->out, part, parts), to = start(a->out, part + 1, parts);
    if (from < to)
        gemm(ROWS, TRANSPOSED, PLAIN, to - from, a->in, a->rows, 1, a->gy + from, a->out, a->x, a->in,
             0, a->gW + from * a->in, a->in);
}

// Computes y = x W' + b.
void linear(struct array *y, struct array *x, struct array *W, struct array *b, long rows, long in, long out) {
    struct linear a = {.y = y->data, .x = x->data, .W = W->data, .b = b->data, .rows = rows, .in = in, .out = out};
    together(linear_part, &a, rows * in * out);
}

// Computes gx = gy W.
void linear_grad_data(struct array *gx, struct array *W, struct array *gy, long rows, long in, long out) {
    struct linear a = {.gx = gx->data, .W = W->data, .gy = gy->data, .rows = rows, .in = in, .out = out};
    together(grad_data_part, &a, rows * in * out);
}

// Computes gW = gy' x.
void linear_grad_weight(struct array *gW, struct array *x, struct array *gy, long rows, long in, long out) {
    struct linear a = {.gW = gW->data, .x = x->data, .gy = gy->data, .rows = rows, .in = in, .out = out};
    together(grad_weight_part, &a, rows * in * out);
}
