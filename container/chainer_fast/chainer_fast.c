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
#define SPINS 3000  // some 0.07 ms: waking costs more, but threads that spin longer take the cores of NumPy's
#elif defined __aarch64__
#define PAUSE __asm__ volatile("isb")  // isb waits some 14 ns; on most CPUs `yield` does not wait
#define SPINS 5000
#else
#define PAUSE sched_yield()
#define SPINS 100
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

FOR_EACH_CPU static void adam_part(const void *a_, long part, long parts) {
    const struct adam *a = a_;
    const long from = start(a->n, part, parts), to = start(a->n, part + 1, parts);
    float *restrict p = a->p, *restrict m = a->m, *restrict v = a->v;
    const float *restrict g = a->g;
    const float beta1 = a->beta1, beta2 = a->beta2, alpha = a->alpha, eps = a->eps;
    for (long i = from; i < to; i++) {
        m[i] += beta1 * (g[i] - m[i]);
        v[i] += beta2 * (g[i] * g[i] - v[i]);
        p[i] -= alpha * m[i] / (sqrtf(v[i]) + eps);
    }
}

void adam(struct array *p, struct array *m, struct array *v, struct array *g, long n,
          float beta1, float beta2, float alpha, float eps) {
    struct adam a = {p->data, m->data, v->data, g->data, n, beta1, beta2, alpha, eps};
    together(adam_part, &a, 10 * n);
}

struct product {
    const float *a, *b, *bias;  // with a bias b is transposed; or 0
    float *c;
    long m, n, k, trans_a;
};

FOR_EACH_CPU static void add_bias(const struct product *p, long from, long to) {
    float *restrict c = p->c;
    const float *restrict bias = p->bias;
    for (long i = 0; i < p->m; i++, c += p->n)
        for (long j = from; j < to; j++) c[j] += bias[j];
}

// Computes products of rows of a and of b, from i and j on. A row's sums have one order, whatever the other rows.
static inline __attribute__((always_inline)) void dots(const struct product *p, long i, long j, long to,
                                                       const int rows, const int columns) {
    typedef float lanes __attribute__((vector_size(32), aligned(4)));
    const long length = p->k;
    const float *a = p->a + i * length, *b[6];
    lanes sums[4][6] = {0};
    for (int c = 0; c < columns; c++) b[c] = p->b + (j + c < to ? j + c : to - 1) * length;
    long k = 0;
    for (; k + 8 <= length; k += 8)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++)
                sums[r][c] += *(const lanes *)(a + r * length + k) * *(const lanes *)(b[c] + k);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns && j + c < to; c++) {
            float sum = p->bias[j + c];
            for (int l = 0; l < 8; l++) sum += sums[r][c][l];
            for (long l = k; l < length; l++) sum += a[r * length + l] * b[c][l];
            p->c[(i + r) * p->n + j + c] = sum;
        }
}

FOR_EACH_CPU static void few_rows(const struct product *p, long from, long to) {
    for (long j = from; j < to; j += 6) {  // at most twelve sums at a time, which fit the registers
        long i = 0;
        for (; i + 4 <= p->m; i += 4) {
            dots(p, i, j, to, 4, 3);
            if (j + 3 < to) dots(p, i, j + 3, to, 4, 3);
        }
        if (p->m - i >= 2) dots(p, i, j, to, 2, 6), i += 2;
        if (p->m - i == 1) dots(p, i, j, to, 1, 6);
    }
}

static void product_part(const void *p_, long part, long parts) {
    const struct product *p = p_;
    const long n = p->n, k = p->k, size = p->trans_a ? p->m : n;
    const long from = start(size, part, parts), to = start(size, part + 1, parts);
    if (from == to) return;
    if (p->trans_a) {
        gemm(ROWS, TRANSPOSED, PLAIN, to - from, n, k, 1, p->a + from, p->m, p->b, n, 0, p->c + from * n, n);
    } else if (!p->bias) {
        gemm(ROWS, PLAIN, PLAIN, p->m, to - from, k, 1, p->a, k, p->b + from, n, 0, p->c + from, n);
    } else if (p->m <= FEW) {  // sgemm would first copy b
        few_rows(p, from, to);
    } else {
        gemm(ROWS, PLAIN, TRANSPOSED, p->m, to - from, k, 1, p->a, k, p->b + from * k, k, 0, p->c + from, n);
        add_bias(p, from, to);
    }
}

// Computes y = x W' + b.
void linear(struct array *y, struct array *x, struct array *W, struct array *b, long rows, long out, long in) {
    struct product p = {x->data, W->data, b->data, y->data, rows, out, in, 0};
    together(product_part, &p, rows * out * in);
}

// Computes c = a b, or a' b.
void product(struct array *c, struct array *a, struct array *b, long m, long n, long k, long trans_a) {
    struct product p = {a->data, b->data, 0, c->data, m, n, k, trans_a};
    together(product_part, &p, m * n * k);
}
