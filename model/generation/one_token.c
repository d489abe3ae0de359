/* One token at a time on a CPU, in C: GPT.forward for B = T = 1. Notation as in model/layers.py.

   compile_c.py compiles this file where it finds a compiler; one_token_c.py lays out the weights, and calls step() and
   perhaps candidates(). The weights of each RMSNorm are multiplied into the matrix that follows it. one_token.py is the
   same in numpy. */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const float *qkv, *output, *gate_up, *down;  // matrices, in panels; see product()
    const float *query_norm, *key_norm;          // (D)
} Block;

typedef struct {
    int C, H, L, F, V, S;  // channels, heads, layers, hidden size of SwiGLU, tokens in the vocabulary, block size
    float eps;
    int threads;
    const float *embedding, *head, *cos, *sin;  // (V, C), a matrix in panels, (S, D), (S, D)
    const Block *blocks;                        // (L)
    float *cache;                               // (L, 2, H, S, D), the keys and values of the tokens so far
    float *x, *normed, *qkv, *y, *added, *gate_up, *scores, *logits;  // results of a step, rounded up to whole panels
} Model;

// === sharing work ====================================================================================================

/* share() cuts work into parts. Each thread claims one part after the other, so a thread that has to wait for a core of
   a busy machine keeps the others waiting for the part that it is at, and no longer. A helper that has nothing to do
   looks for work for a moment, then lets others run in between, and then sleeps until the next token. */
enum { SPINS = 2000, YIELDS = 300 };
static void (*task)(const void *, int);
static const void *task_data;
static atomic_int unclaimed, unfinished, sleeping;
static int helpers, parts;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t next_token = PTHREAD_COND_INITIALIZER;

static void work(void) {
    for (int left = unclaimed; left > 0;)
        if (atomic_compare_exchange_weak(&unclaimed, &left, left - 1)) {
            task(task_data, parts - left);
            unfinished--;
            left = unclaimed;
        }
}

static void wait_a_moment(int turn) {
    if (turn >= SPINS) sched_yield();
#ifdef __x86_64__
    __builtin_ia32_pause();  // leaves a core that runs two threads to the other one
#endif
}

static void *help(void *nothing) {
    for (;;) {
        for (int turn = 0; turn < SPINS + YIELDS; turn++) {
            if (unclaimed > 0) {
                work();
                turn = 0;
            }
            wait_a_moment(turn);
        }
        pthread_mutex_lock(&mutex);
        sleeping++;
        pthread_cond_wait(&next_token, &mutex);
        sleeping--;
        pthread_mutex_unlock(&mutex);
    }
    return nothing;
}

static void wake_helpers(int wanted) {
    pthread_t thread;
    while (helpers < wanted && pthread_create(&thread, NULL, help, NULL) == 0) {
        pthread_detach(thread);
        helpers++;
    }
    if (wanted && sleeping && pthread_mutex_trylock(&mutex) == 0) {  // else they miss a token, which does no harm
        pthread_cond_broadcast(&next_token);
        pthread_mutex_unlock(&mutex);
    }
}

/* Call work_on(data, part) for each part from 0 to count - 1, in several threads if there are helpers awake. */
static void share(void (*work_on)(const void *, int), const void *data, int count, int threads) {
    if (threads == 1) {
        for (int part = 0; part < count; part++) work_on(data, part);
        return;
    }
    task = work_on, task_data = data, parts = count;
    unfinished = count;
    unclaimed = count;  // from here on, helpers take part
    work();
    for (int turn = 0; unfinished; turn++) wait_a_moment(turn);
}

// === the layers ======================================================================================================

/* y = W x for W (outputs, inputs). W lies in panels of 32 outputs: for each input, the 32 weights of the panel in a
   row. So the 32 sums stay in the registers, and memory is read from front to back. */
enum { PANEL = 32 };
typedef struct { float *y; const float *w, *x; int inputs; } Product;

static void panel(const void *data, int p) {
    const Product *product = data;
    const float *w = product->w + (size_t)p * PANEL * product->inputs, *x = product->x;
    float sum[PANEL] = {0};
    for (int j = 0; j < product->inputs; j++)
        for (int i = 0; i < PANEL; i++) sum[i] += w[(size_t)j * PANEL + i] * x[j];
    memcpy(product->y + p * PANEL, sum, sizeof sum);
}

static void product(float *y, const float *w, const float *x, int outputs, int inputs, int threads) {
    Product product = {y, w, x, inputs};
    share(panel, &product, (outputs + PANEL - 1) / PANEL, threads);
}

/* RMSNorm without its weights: y = x / sqrt(mean(x^2) + eps) */
static void normalise(float *y, const float *x, int size, float eps) {
    float sum = 0;
    for (int i = 0; i < size; i++) sum += x[i] * x[i];
    float scale = 1 / sqrtf(sum / size + eps);
    for (int i = 0; i < size; i++) y[i] = x[i] * scale;
}

/* Rotate each pair of channels of a head by the angle of its position. */
static void rotate(float *y, const float *x, const float *cos, const float *sin, int D) {
    for (int i = 0, j = D / 2; i < D / 2; i++, j++) {
        float a = x[i], b = x[j];
        y[i] = a * cos[i] - b * sin[i];
        y[j] = b * cos[i] + a * sin[i];
    }
}

/* e^x = 2^n e^r with |r| <= ln(2) / 2. Unlike expf, compilers turn this into vector instructions everywhere; x is
   limited to what does not overflow, and NaN stays NaN. */
static inline float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    int biased = x * 1.44269504f + 127.5f;  // n + 127, as in the exponent of a float
    float r = x - (biased - 127) * 0.693147181f;
    union { int bits; float value; } power = {biased << 23};
    float tail = 1 / 24.f + r * (1 / 120.f + r * (1 / 720.f));
    return power.value * (1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * tail))));
}

typedef struct { const Model *m; const Block *block; float *keys; int position; } Attention;

/* y = softmax(q K^T / sqrt(D)) V for one head */
static void head(const void *data, int h) {
    const Attention *a = data;
    const Model *m = a->m;
    int C = m->C, D = C / m->H, S = m->S, T = a->position + 1;
    float *q = m->qkv + h * D, *k = q + C, *v = k + C, *y = m->y + h * D, *p = m->scores + (size_t)h * S;
    float *keys = a->keys + (size_t)h * S * D, *values = keys + (size_t)C * S;  // (S, D)
    const float *cos = m->cos + (size_t)a->position * D, *sin = m->sin + (size_t)a->position * D;
    normalise(q, q, D, m->eps);
    normalise(k, k, D, m->eps);
    for (int i = 0; i < D; i++) {
        q[i] *= a->block->query_norm[i];
        k[i] *= a->block->key_norm[i];
    }
    rotate(y, q, cos, sin, D);  // y is free until the end
    rotate(keys + (size_t)a->position * D, k, cos, sin, D);
    memcpy(values + (size_t)a->position * D, v, D * sizeof *v);
    memcpy(q, y, D * sizeof *q);

    float highest = -INFINITY, total = 0, scale = 1 / sqrtf(D);
    for (int t = 0; t < T; t++) {
        float sum = 0;
        for (int i = 0; i < D; i++) sum += q[i] * keys[(size_t)t * D + i];
        p[t] = sum * scale;
        highest = p[t] > highest ? p[t] : highest;
    }
    for (int t = 0; t < T; t++) total += p[t] = exponential(p[t] - highest);
    memset(y, 0, D * sizeof *y);
    scale = 1 / total;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < D; i++) y[i] += p[t] * scale * values[(size_t)t * D + i];
}

static void add(float *x, const float *y, int size) {
    for (int i = 0; i < size; i++) x[i] += y[i];
}

// === the model =======================================================================================================

/* Feed one token at a position; its logits are in m->logits, its keys and values in m->cache. */
void step(const Model *m, int token, int position) {
    int C = m->C, F = m->F, threads = m->threads;
    float *x = m->x, *gate = m->gate_up, *up = gate + F;
    wake_helpers(threads - 1);
    memcpy(x, m->embedding + (size_t)token * C, C * sizeof *x);
    for (int layer = 0; layer < m->L; layer++) {
        const Block *block = m->blocks + layer;
        // x += attention(norm(x))
        normalise(m->normed, x, C, m->eps);
        product(m->qkv, block->qkv, m->normed, 3 * C, C, threads);
        Attention attention = {m, block, m->cache + (size_t)layer * 2 * C * m->S, position};
        share(head, &attention, m->H, threads);
        product(m->added, block->output, m->y, C, C, threads);
        add(x, m->added, C);
        // x += SwiGLU(norm(x)) = down(silu(gate) * up)
        normalise(m->normed, x, C, m->eps);
        product(m->gate_up, block->gate_up, m->normed, 2 * F, C, threads);
        for (int i = 0; i < F; i++) gate[i] *= up[i] / (1 + exponential(-gate[i]));
        product(m->added, block->down, gate, C, F, threads);
        add(x, m->added, C);
    }
    normalise(m->normed, x, C, m->eps);
    product(m->logits, m->head, m->normed, m->V, C, threads);
}

/* What sampling needs of the logits: the n highest (n) and their ids (n), highest first, of equal ones the lower id
   first; sums are, over all ids, ln of the sum of exp(logit), and the mean logit by their probabilities. If a logit is
   NaN, so are the sums, and the candidates mean nothing. */
void candidates(const Model *m, int n, double *highest, int64_t *ids, double *sums) {
    int found = 0;
    for (int i = 0; i < m->V; i++) {
        float x = m->logits[i];
        if (found == n && !(x > highest[n - 1])) continue;
        int place = found < n ? found++ : n - 1;
        for (; place > 0 && highest[place - 1] < x; place--) {
            highest[place] = highest[place - 1];
            ids[place] = ids[place - 1];
        }
        highest[place] = x;
        ids[place] = i;
    }
    double total = 0, weighted = 0;
    float first = highest[0];
    for (int i = 0; i < m->V; i++) {
        float below = m->logits[i] - first, weight = exponential(below);
        total += weight;
        weighted += weight * (below < -87 ? -87 : below);  // minus infinity times 0 is not 0
    }
    sums[0] = first + log(total);
    sums[1] = first + weighted / total;
}
