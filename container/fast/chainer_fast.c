// Loops over float32 arrays for chainer_fast.py, each in one pass over memory.
#include <math.h>
#include <pthread.h>

#ifdef __x86_64__
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

struct array {  // the head of NumPy's PyArrayObject
    long references;
    void *type, *data;
};

struct adam {
    float *p, *m, *v;
    const float *g;
    long n;
    float beta1, beta2, alpha, eps;  // beta1 and beta2 are one minus Chainer's
};

FOR_EACH_CPU static void adam_slice(const struct adam *a) {
    float *restrict p = a->p, *restrict m = a->m, *restrict v = a->v;
    const float *restrict g = a->g;
    const float beta1 = a->beta1, beta2 = a->beta2, alpha = a->alpha, eps = a->eps;
    for (long i = 0; i < a->n; i++) {
        m[i] += beta1 * (g[i] - m[i]);
        v[i] += beta2 * (g[i] * g[i] - v[i]);
        p[i] -= alpha * m[i] / (sqrtf(v[i]) + eps);
    }
}

static void *adam_thread(void *a) { adam_slice(a); return 0; }

void adam(struct array *p, struct array *m, struct array *v, struct array *g, long n,
          float beta1, float beta2, float alpha, float eps, int threads) {
    struct adam rest = {p->data, m->data, v->data, g->data, n, beta1, beta2, alpha, eps}, slices[16];
    pthread_t ids[16];
    int k = 0;
    for (; k < threads - 1 && k < 16 && n > 200000; k++) {
        slices[k] = rest;
        slices[k].n = n / threads;
        if (pthread_create(&ids[k], 0, adam_thread, &slices[k])) break;
        rest.p += n / threads, rest.m += n / threads, rest.v += n / threads, rest.g += n / threads;
        rest.n -= n / threads;
    }
    adam_slice(&rest);
    while (k--) pthread_join(ids[k], 0);
}

FOR_EACH_CPU void add_bias(struct array *y_, struct array *b_, long rows, long columns) {
    float *restrict y = y_->data;
    const float *restrict b = b_->data;
    for (long i = 0; i < rows; i++, y += columns)
        for (long j = 0; j < columns; j++) y[j] += b[j];
}

FOR_EACH_CPU void relu(struct array *y_, struct array *x_, long n) {
    float *restrict y = y_->data;
    const float *restrict x = x_->data;
    for (long i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i];  // NaN stays NaN
}

FOR_EACH_CPU void relu_grad(struct array *gx_, struct array *y_, struct array *gy_, long n) {
    float *restrict gx = gx_->data;
    const float *restrict y = y_->data, *restrict gy = gy_->data;
    for (long i = 0; i < n; i++) gx[i] = y[i] > 0 ? gy[i] : 0;
}

// Writes softmax(x) to y, the mean loss of the rows whose label is not `ignore` to *loss, and
// returns how many those are; -1 where a label is not a column.
FOR_EACH_CPU long softmax_cross_entropy(struct array *y_, struct array *x_, struct array *t_,
                                        long rows, long columns, int ignore, float *loss) {
    float *restrict y = y_->data;
    const float *restrict x = x_->data;
    const int *t = t_->data;
    double sum = 0;
    long count = 0;
    for (long i = 0; i < rows; i++, x += columns, y += columns) {
        float top = x[0], total = 0;
        for (long j = 1; j < columns; j++) top = x[j] > top ? x[j] : top;
        for (long j = 0; j < columns; j++) total += y[j] = expf(x[j] - top);
        if (t[i] != ignore) {
            if (t[i] < 0 || t[i] >= columns) return -1;
            sum += top + logf(total) - x[t[i]];
            count++;
        }
        for (long j = 0; j < columns; j++) y[j] /= total;
    }
    *loss = count ? sum / count : 0;
    return count;
}

// Writes scale * (y - one-hot label) to gx, 0 where the label is `ignore`; returns -1 likewise.
FOR_EACH_CPU long softmax_cross_entropy_grad(struct array *gx_, struct array *y_, struct array *t_,
                                             long rows, long columns, int ignore, float scale) {
    float *restrict gx = gx_->data;
    const float *restrict y = y_->data;
    const int *t = t_->data;
    for (long i = 0; i < rows; i++, gx += columns, y += columns) {
        if (t[i] == ignore) {
            for (long j = 0; j < columns; j++) gx[j] = 0;
            continue;
        }
        if (t[i] < 0 || t[i] >= columns) return -1;
        for (long j = 0; j < columns; j++) gx[j] = y[j] * scale;
        gx[t[i]] -= scale;
    }
    return 0;
}

// Returns in how many rows the label's score is the first of the largest; -1 where one is NaN.
FOR_EACH_CPU long correct(struct array *x_, struct array *t_, long rows, long columns) {
    const float *x = x_->data;
    const int *t = t_->data;
    long count = 0;
    for (long i = 0; i < rows; i++, x += columns) {
        long best = 0;
        for (long j = 0; j < columns; j++) {
            if (x[j] != x[j]) return -1;
            if (x[j] > x[best]) best = j;
        }
        count += best == t[i];
    }
    return count;
}
