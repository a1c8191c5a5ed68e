/* SPDX-License-Identifier: MIT */
/*
 * A small producer of TAP, the Test Anything Protocol.
 *
 *	int main(void)
 *	{
 *		tap_plan(2);			// or leave it out: tap_done() then prints the plan
 *		ok(f() == 0, "f succeeds for %s", name);
 *		is_int(g(), 7, "g returns seven");
 *		return tap_done();
 *	}
 *
 * Checks return their condition, so that `if (!ok(...)) goto out;` works. Threads may report at
 * the same time. A forked child may only call tap_diag(): its results would be counted twice or
 * not at all, so the parent has to report them from the child's exit status.
 *
 * Standard output carries TAP and nothing else; the functions write to it directly, without stdio.
 */
#ifndef T_TAP_H
#define T_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TAP_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* The number of checks to come. Once, before the first check. */
void tap_plan(unsigned int count);

bool tap_ok(bool cond, const char *file, int line, const char *fmt, ...) TAP_PRINTF(4, 5);
bool tap_is_int(long long got, long long want, const char *file, int line, const char *fmt, ...)
	TAP_PRINTF(5, 6);
bool tap_is_u64(uint64_t got, uint64_t want, const char *file, int line, const char *fmt, ...)
	TAP_PRINTF(5, 6);
/* NULL is a value of its own: equal to NULL only. */
bool tap_is_str(const char *got, const char *want, const char *file, int line, const char *fmt, ...)
	TAP_PRINTF(5, 6);
/* Tells the first byte that differs. */
bool tap_is_mem(const void *got, const void *want, size_t size, const char *file, int line,
		const char *fmt, ...) TAP_PRINTF(6, 7);

#define ok(cond, ...)		     tap_ok(!!(cond), __FILE__, __LINE__, __VA_ARGS__)
#define is_int(got, want, ...)	     tap_is_int(got, want, __FILE__, __LINE__, __VA_ARGS__)
#define is_u64(got, want, ...)	     tap_is_u64(got, want, __FILE__, __LINE__, __VA_ARGS__)
#define is_str(got, want, ...)	     tap_is_str(got, want, __FILE__, __LINE__, __VA_ARGS__)
#define is_mem(got, want, size, ...) tap_is_mem(got, want, size, __FILE__, __LINE__, __VA_ARGS__)

/* A comment; each line of the text becomes one. */
void tap_diag(const char *fmt, ...) TAP_PRINTF(1, 2);

/* `count` checks are not made, for this reason. */
void tap_skip(unsigned int count, const char *fmt, ...) TAP_PRINTF(2, 3);

/* Nothing in this program can be checked. Before the plan; exits with success. */
void tap_skip_all(const char *fmt, ...) TAP_PRINTF(1, 2) __attribute__((noreturn));

/*
 * Prerequisites. `what` is a word such as "cuda" or "verbs"; `have` says whether it is there; the
 * text says why not. A missing one is a skip with that reason, unless the environment variable
 * MOEEP_TEST_REQUIRE (words separated by spaces or commas) names it: then it is a failure, so that
 * a machine that is meant to run everything cannot pass by skipping.
 *
 * tap_require() stands for `count` checks and returns `have`; tap_require_all() ends the program.
 */
bool tap_require(const char *what, bool have, unsigned int count, const char *fmt, ...)
	TAP_PRINTF(4, 5);
void tap_require_all(const char *what, bool have, const char *fmt, ...) TAP_PRINTF(3, 4);

/* True if MOEEP_TEST_QUICK asks for a short run: tests then leave out their long variants. */
bool tap_quick(void);

/* Gives up on the whole program: the harness counts an error. */
void tap_bail(const char *fmt, ...) TAP_PRINTF(1, 2) __attribute__((noreturn));

/* Prints the plan if there was none. Returns main's exit status: 0 if all passed and as planned. */
int tap_done(void);

#endif /* T_TAP_H */
