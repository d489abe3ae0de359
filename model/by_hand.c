/* The layers between the matrix products, forward and backward, in C: each in one pass over memory, where operations of
   torch take several. by_hand.py has the same algebra and says where it comes from; by_hand_c.py calls this file.
   Notation as in layers.py; dx is the gradient of x; all numbers are fp32.

   Work is cut into PARTS parts, whatever the number of threads, and each part sums up its own share of the gradients of
   norm weights. So the result has the same bits with any number of threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 32, ROWS = 6, PANEL = 16 };  // ROWS x PANEL sums fill twelve of the sixteen registers of AVX2
#define EACH_PART _Pragma("omp parallel for schedule(static)") for (long part = 0; part < PARTS; part++)
#define EACH_ROW(n) for (long row = (n) * part / PARTS; row < (n) * (part + 1) / PARTS; row++)

/* e^x, to 5e-7 of it for x between -10 and 10. Compilers turn this into vector instructions, and expf not everywhere. */
static inline float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    float y = x * 1.44269504f, whole = rintf(y), f = (y - whole) * 0.693147181f;  // e^x = 2^whole e^f
    float e_f = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f * (1 / 720.f))))));
    int bits = ((int)whole + 127) << 23;  // of the float 2^whole
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * e_f;
}

static float dot(int n, const float *restrict a, const float *restrict b) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static float maximum(int n, const float *x) {
    float highest = x[0];
    #pragma omp simd reduction(max : highest)
    for (int i = 1; i < n; i++) highest = x[i] > highest ? x[i] : highest;
    return highest;
}

/* x <- softmax(factor x), n numbers; returns ln of the sum of e^(factor x) */
static float softmax(int n, float factor, float *x) {
    float highest = maximum(n, x), total = 0;
    for (int i = 0; i < n; i++) x[i] = exponential((x[i] - highest) * factor);
    for (int i = 0; i < n; i++) total += x[i];
    for (int i = 0; i < n; i++) x[i] *= 1 / total;
    return logf(total) + highest * factor;
}

// === RMSNorm =========================================================================================================

static float norm_scale(int n, const float *x, float eps) { return 1 / sqrtf(dot(n, x, x) / n + eps); }

/* dx = scale (g - normed mean(g normed)), where g = dy weight; adds dy normed to dweight */
static void norm_back(int n, const float *restrict dy, const float *restrict x, float scale,
                      const float *restrict weight, float *restrict dx, float *restrict dweight) {
    float mean = 0;
    for (int i = 0; i < n; i++) {
        float product = dy[i] * x[i] * scale;
        mean += product * weight[i];
        dweight[i] += product;
    }
    mean *= scale / n;
    for (int i = 0; i < n; i++) dx[i] = scale * (dy[i] * weight[i] - x[i] * mean);
}

/* x (N, C), weight (C) -> y (N, C), scale (N) */
void norm_forward(long N, long C, float eps, const float *X, const float *restrict weight, float *Y, float *scale) {
    EACH_PART EACH_ROW(N) {
        const float *restrict x = X + row * C;
        float *restrict y = Y + row * C, s = scale[row] = norm_scale(C, x, eps);
        for (int i = 0; i < C; i++) y[i] = x[i] * s * weight[i];
    }
}

/* -> dx (N, C), dweight (PARTS, C), which starts at zero */
void norm_backward(long N, long C, const float *dY, const float *X, const float *scale, const float *weight, float *dX,
                   float *dweight) {
    EACH_PART EACH_ROW(N) {
        norm_back(C, dY + row * C, X + row * C, scale[row], weight, dX + row * C, dweight + part * C);
    }
}

// === attention =======================================================================================================

/* qkv (B, T, 3, H, D) -> heads (3, B, H, Tp, Dp): queries and keys, normed and rotated, and values; scale (B, T, 2, H).
   Tp is T + ROWS - 1 and Dp is D, rounded up to whole panels; what they add starts at zero and stays so. */
void split_heads(long B, long T, long H, long D, long Tp, long Dp, float eps, const float *qkv, const float *weight,
                 const float *cosines, const float *sines, float *heads, float *scale) {
    EACH_PART EACH_ROW(B * T) for (int i = 0; i < 3 * H; i++) {
        int which = i / H, h = i % H, t = row % T, half = D / 2;
        const float *restrict x = qkv + (row * 3 * H + i) * D, *restrict w = weight + which * D;
        const float *restrict cos = cosines + t * D, *restrict sin = sines + t * D;
        float *restrict y = heads + (((which * B + row / T) * H + h) * Tp + t) * Dp;
        if (which == 2) {
            memcpy(y, x, D * sizeof *y);
            continue;
        }
        float s = scale[row * 2 * H + i] = norm_scale(D, x, eps);
        for (int j = 0; j < half; j++) {
            float a = x[j] * s * w[j], b = x[j + half] * s * w[j + half];
            y[j] = a * cos[j] - b * sin[j];
            y[j + half] = b * cos[j] + a * sin[j];
        }
    }
}

/* dheads (3, B, H, Tp, Dp) -> dqkv (B, T, 3, H, D), dweight (PARTS, 2, D), which starts at zero */
void split_heads_backward(long B, long T, long H, long D, long Tp, long Dp, const float *dheads, const float *qkv,
                          const float *weight, const float *cosines, const float *sines, const float *scale,
                          float *dqkv, float *dweight) {
    EACH_PART EACH_ROW(B * T) for (int i = 0; i < 3 * H; i++) {
        int which = i / H, h = i % H, t = row % T, half = D / 2;
        const float *restrict dy = dheads + (((which * B + row / T) * H + h) * Tp + t) * Dp, *x = qkv + (row * 3 * H + i) * D;
        const float *restrict cos = cosines + t * D, *restrict sin = sines + t * D;
        float *dx = dqkv + (row * 3 * H + i) * D, turned[D];
        if (which == 2) {
            memcpy(dx, dy, D * sizeof *dy);
            continue;
        }
        for (int j = 0; j < half; j++) {  // the rotation back
            turned[j] = dy[j] * cos[j] + dy[j + half] * sin[j];
            turned[j + half] = dy[j + half] * cos[j] - dy[j] * sin[j];
        }
        norm_back(D, turned, x, scale[row * 2 * H + i], weight + which * D, dx, dweight + (part * 2 + which) * D);
    }
}

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));  // a register of AVX2

/* The matrix (k, n) whose element (i, j) is x[i * row + j * column], in panels: (n / PANEL, k, PANEL) */
static void pack(int k, int n, const float *restrict x, int row, int column, float *restrict panels) {
    for (int j = 0; j < n; j += PANEL)
        for (int i = 0; i < k; i++)
            for (int c = 0; c < PANEL; c++) *panels++ = x[i * row + (j + c) * column];
}

/* out (ROWS, n) = a (ROWS, k) b (k, n), for b in panels of b_rows rows. The sums of a panel stay in registers. */
static void product(int k, int n, const float *restrict a, int a_row, const float *restrict b, int b_rows,
                    float *restrict out, int out_row) {
    for (int j = 0; j < n; j += PANEL, b += b_rows * PANEL) {
        Eight sum[ROWS][2] = {0};
        for (int i = 0; i < k; i++) {
            const Eight *x = (const Eight *)(b + i * PANEL);
            for (int r = 0; r < ROWS; r++) {
                sum[r][0] += a[r * a_row + i] * x[0];
                sum[r][1] += a[r * a_row + i] * x[1];
            }
        }
        for (int r = 0; r < ROWS; r++) memcpy(out + r * out_row + j, sum[r], sizeof sum[r]);
    }
}

/* out (n, D) += a^T b, for a (ROWS, n) and b (ROWS, D) */
static void add_product(int n, int D, const float *restrict a, int a_row, const float *restrict b, float *restrict out) {
    for (int i = 0; i < n; i++)
        for (int c = 0; c < D; c += 8) {
            Eight sum = *(Eight *)(out + i * D + c);
            for (int r = 0; r < ROWS; r++) sum += a[r * a_row + i] * *(const Eight *)(b + r * D + c);
            *(Eight *)(out + i * D + c) = sum;
        }
}

/* How many keys ROWS queries from t on look at, rounded up to whole panels */
static int keys_at(int t) { return (t + ROWS + PANEL - 1) / PANEL * PANEL; }

/* p (ROWS, Tp): the attention weights of the ROWS queries q from t on, zero for keys that come after the query */
static void weights_at(int t, int Tp, int Dp, float root, const float *q, const float *k_T, float *P) {
    int n = keys_at(t);
    product(Dp, n, q, Dp, k_T, Dp, P, Tp);
    for (int r = 0; r < ROWS; r++) {
        float *p = P + r * Tp;
        softmax(t + r + 1, root, p);
        memset(p + t + r + 1, 0, (n - (t + r + 1)) * sizeof *p);
    }
}

/* queries, keys, values (N, Tp, Dp) of N heads -> y (N, Tp, Dp); root is 1 / sqrt(D) */
void attention_forward(long N, long T, long Tp, long Dp, float root, const float *Q, const float *K, const float *V,
                       float *Y) {
    EACH_PART {
        long size = (long)Tp * Dp;
        float *k_T = malloc((2 * size + ROWS * Tp) * sizeof *k_T), *v = k_T + size, *p = v + size;
        EACH_ROW(N) {
            pack(Dp, Tp, K + row * size, 1, Dp, k_T);
            pack(Tp, Dp, V + row * size, Dp, 1, v);
            for (int t = 0; t < T; t += ROWS) {
                weights_at(t, Tp, Dp, root, Q + row * size + t * Dp, k_T, p);
                product(keys_at(t), Dp, p, Tp, v, Tp, Y + row * size + t * Dp, Dp);
            }
        }
        free(k_T);
    }
}

/* dy (N, Tp, Dp), zero after token T -> dq, dk, dv (N, Tp, Dp), which start at zero. The weights are computed again. */
void attention_backward(long N, long T, long Tp, long Dp, float root, const float *dY, const float *Q, const float *K,
                        const float *V, float *dQ, float *dK, float *dV) {
    EACH_PART {
        long size = (long)Tp * Dp;
        float *k_T = malloc((3 * size + 2 * ROWS * Tp) * sizeof *k_T), *v_T = k_T + size, *k = v_T + size;
        float *p = k + size, *ds = p + ROWS * Tp;
        EACH_ROW(N) {
            pack(Dp, Tp, K + row * size, 1, Dp, k_T);
            pack(Dp, Tp, V + row * size, 1, Dp, v_T);
            pack(Tp, Dp, K + row * size, Dp, 1, k);
            for (int t = 0; t < T; t += ROWS) {
                long at = row * size + t * Dp, n = keys_at(t);
                weights_at(t, Tp, Dp, root, Q + at, k_T, p);
                product(Dp, n, dY + at, Dp, v_T, Dp, ds, Tp);  // dp = dy v^T
                for (int r = 0; r < ROWS; r++) {  // ds = p (dp - sum(dp p))
                    float sum = dot(n, ds + r * Tp, p + r * Tp);
                    for (int i = r * Tp; i < r * Tp + n; i++) ds[i] = (ds[i] - sum) * p[i] * root;
                }
                product(n, Dp, ds, Tp, k, Tp, dQ + at, Dp);
                add_product(n, Dp, ds, Tp, Q + at, dK + row * size);
                add_product(n, Dp, p, Tp, dY + at, dV + row * size);
            }
        }
        free(k_T);
    }
}

// === SwiGLU ==========================================================================================================

/* gate_up (N, 2 F) -> silu(gate) up (N, F) */
void swiglu_forward(long N, long F, const float *gate_up, float *Y) {
    EACH_PART EACH_ROW(N) {
        const float *restrict gate = gate_up + row * 2 * F, *restrict up = gate + F;
        float *restrict y = Y + row * F;
        for (int i = 0; i < F; i++) y[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
    }
}

/* dy (N, F) -> dgate_up (N, 2 F) */
void swiglu_backward(long N, long F, const float *dY, const float *gate_up, float *dgate_up) {
    EACH_PART EACH_ROW(N) {
        const float *restrict gate = gate_up + row * 2 * F, *restrict up = gate + F, *restrict dy = dY + row * F;
        float *restrict dgate = dgate_up + row * 2 * F, *restrict dup = dgate + F;
        for (int i = 0; i < F; i++) {
            float sigmoid = 1 / (1 + exponential(-gate[i])), silu = gate[i] * sigmoid;
            dgate[i] = dy[i] * up[i] * (sigmoid + silu * (1 - sigmoid));
            dup[i] = dy[i] * silu;
        }
    }
}

// === the loss ========================================================================================================

/* logits (N, V), targets (N) -> losses -ln p (N), and in place of the logits their gradients, softmax - one_hot */
void losses_and_gradients(long N, long V, float *logits, const long *targets, float *losses) {
    EACH_PART EACH_ROW(N) {
        float *x = logits + row * V, logit = x[targets[row]];
        losses[row] = softmax(V, 1, x) - logit;
        x[targets[row]] -= 1;
    }
}
