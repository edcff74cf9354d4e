/* fp.*: scalar floating point in SSE2 and x87. Results are compared bit by bit. */
#include <math.h>
#include <string.h>

#include "bench.h"

struct body {
    double at[3], speed[3], mass;
};

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static double root(double value)
{
    __asm__("sqrtsd %1, %0" : "=x"(value) : "x"(value));
    return value;
}

static AS_WRITTEN uint64_t nbody(void)
{
    struct body bodies[5];
    for (int i = 0; i < 5; i++)
        bodies[i] = (struct body){{i * 1.5 + 0.25, i * -2.25 + 1, 0.5 * i},
                                  {0.1 * i, 0.2 - 0.05 * i, 0.01 * i}, i == 0 ? 39.5 : 0.05 / i};
    for (int step = 0; step < 1000; step++) {
        for (int i = 0; i < 5; i++) {
            for (int j = i + 1; j < 5; j++) {
                double d[3], square = 0;
                for (int k = 0; k < 3; k++) {
                    d[k] = bodies[i].at[k] - bodies[j].at[k];
                    square += d[k] * d[k];
                }
                double pull = 0.001 / (square * root(square));
                for (int k = 0; k < 3; k++) {
                    bodies[i].speed[k] -= d[k] * bodies[j].mass * pull;
                    bodies[j].speed[k] += d[k] * bodies[i].mass * pull;
                }
            }
        }
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < 3; k++)
                bodies[i].at[k] += 0.001 * bodies[i].speed[k];
    }
    uint64_t sum = 0;
    for (int i = 0; i < 5; i++)
        sum = fold(sum, bits_of(bodies[i].at[0]) ^ bits_of(bodies[i].speed[2]));
    return sum;
}

static AS_WRITTEN uint64_t mandelbrot(void)
{
    uint64_t sum = 0;
    for (int row = 0; row < 64; row++) {
        for (int column = 0; column < 64; column++) {
            double cr = column / 24.0 - 2.0, ci = row / 32.0 - 1.0, r = 0, i = 0;
            int n = 0;
            for (; n < 100 && r * r + i * i < 4.0; n++) {
                double t = r * r - i * i + cr;
                i = 2.0 * r * i + ci;
                r = t;
            }
            sum = sum * 3 + (uint64_t)n;
        }
    }
    return sum;
}

/* The value an x87 register holds is kept in full: mantissa and exponent. */
static uint64_t fold_extended(uint64_t sum, long double value)
{
    unsigned char bytes[16] = {0};
    memcpy(bytes, &value, 10);
    return fold_bytes(sum, bytes, 10);
}

static AS_WRITTEN uint64_t x87(void)
{
    long double a = 1.0L, b = 0.3L, c = 2.7L;
    for (int i = 0; i < 30000; i++) {
        a = a * b + c;
        b = c / (a + 0.5L);
        __asm__("fsqrt" : "+t"(a));
        c = c - b * 0.0001L + 0.00001L;
    }
    return fold_extended(fold_extended(fold_extended(9, a), b), c);
}

static AS_WRITTEN uint64_t x87_transcendental(void)
{
    uint64_t sum = 0;
    for (int i = 1; i <= 3000; i++) {
        long double x = i * 0.0007L, sine, cosine, angle = x, power = x / 4, logarithm = 3.0L;
        __asm__("fsincos" : "=t"(cosine), "=u"(sine) : "0"(x));
        __asm__("fpatan" : "+t"(angle) : "u"(sine) : "st(1)");
        __asm__("f2xm1" : "+t"(power));
        __asm__("fyl2x" : "=t"(logarithm) : "0"(x + 1), "u"(logarithm) : "st(1)");
        /* Processors and emulators differ in the last bits; 32 bits of each result they share. */
        sum = fold(sum, (uint64_t)llrintl((sine + cosine + 2) * 1e9L + 0.37L));
        sum = fold(sum, (uint64_t)llrintl((angle + power + logarithm + 4) * 1e9L + 0.37L));
    }
    return sum;
}

const struct benchmark float_group[] = {
    {"fp.nbody", NULL, nbody, 1},
    {"fp.mandel", NULL, mandelbrot, 1},
    {"fp.x87", NULL, x87, 1},
    {"fp.x87trans", NULL, x87_transcendental, 1},
    {0},
};
