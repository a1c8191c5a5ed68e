/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/tap.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_MAX 1024

static pthread_mutex_t tap_lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t tap_owner;
static unsigned int tap_planned, tap_count, tap_failed;
static bool tap_have_plan;

/* One write for one or more whole lines: output of several processes cannot mix within a line. */
static void put(const char *text)
{
	size_t left = strlen(text);

	while (left > 0) {
		ssize_t n = write(STDOUT_FILENO, text, left);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			_exit(3);
		}
		text += n;
		left -= (size_t)n;
	}
}

/* A child that reports would be counted in its own copy of the counters: a lost result. */
static void lock(void)
{
	pthread_mutex_lock(&tap_lock);
	if (tap_owner == 0) {
		tap_owner = getpid();
	} else if (tap_owner != getpid()) {
		put("Bail out! a forked child reported a result\n");
		_exit(3);
	}
}

static void unlock(void)
{
	pthread_mutex_unlock(&tap_lock);
}

/* Comment lines from text that may hold several; `out` holds at most `size` bytes. */
static void comment(char *out, size_t size, const char *text)
{
	size_t n = 0;
	bool start = true;

	for (; *text != '\0' && n + 4 < size; text++) {
		if (start) {
			out[n++] = '#';
			out[n++] = ' ';
		}
		out[n++] = *text;
		start = *text == '\n';
	}
	if (!start) {
		out[n++] = '\n';
	}
	out[n] = '\0';
}

/* A description must stay on its line, and a '#' in it would start a directive. */
static void clean(char *text)
{
	for (; *text != '\0'; text++) {
		if (*text == '\n' || *text == '\r') {
			*text = ' ';
		} else if (*text == '#') {
			*text = '/';
		}
	}
}

static bool TAP_PRINTF(5, 0) vreport(bool cond, const char *file, int line, const char *detail,
				     const char *fmt, va_list args)
{
	char name[TEXT_MAX], text[3 * TEXT_MAX], notes[4 * TEXT_MAX];
	int n;

	vsnprintf(name, sizeof(name), fmt, args);
	clean(name);
	lock();
	tap_count++;
	n = snprintf(text, sizeof(text), "%s %u - %s\n", cond ? "ok" : "not ok", tap_count, name);
	if (!cond) {
		tap_failed++;
		snprintf(notes, sizeof(notes), "at %s:%d\n%s", file, line, detail);
		comment(text + n, sizeof(text) - (size_t)n, notes);
	}
	put(text);
	unlock();
	return cond;
}

void tap_plan(unsigned int count)
{
	char text[64];

	lock();
	tap_have_plan = true;
	tap_planned = count;
	snprintf(text, sizeof(text), "1..%u\n", count);
	put(text);
	unlock();
}

bool tap_ok(bool cond, const char *file, int line, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vreport(cond, file, line, "", fmt, args);
	va_end(args);
	return cond;
}

bool tap_is_int(long long got, long long want, const char *file, int line, const char *fmt, ...)
{
	char detail[128];
	va_list args;

	snprintf(detail, sizeof(detail), "     got: %lld\nexpected: %lld\n", got, want);
	va_start(args, fmt);
	vreport(got == want, file, line, detail, fmt, args);
	va_end(args);
	return got == want;
}

bool tap_is_u64(uint64_t got, uint64_t want, const char *file, int line, const char *fmt, ...)
{
	char detail[192];
	va_list args;

	snprintf(detail, sizeof(detail), "     got: %llu (0x%llx)\nexpected: %llu (0x%llx)\n",
		 (unsigned long long)got, (unsigned long long)got, (unsigned long long)want,
		 (unsigned long long)want);
	va_start(args, fmt);
	vreport(got == want, file, line, detail, fmt, args);
	va_end(args);
	return got == want;
}

bool tap_is_str(const char *got, const char *want, const char *file, int line, const char *fmt, ...)
{
	char detail[2 * TEXT_MAX];
	const char *q_got = got ? "\"" : "", *q_want = want ? "\"" : "";
	bool same = got && want ? strcmp(got, want) == 0 : got == want;
	va_list args;

	snprintf(detail, sizeof(detail), "     got: %s%.900s%s\nexpected: %s%.900s%s\n", q_got,
		 got ? got : "NULL", q_got, q_want, want ? want : "NULL", q_want);
	va_start(args, fmt);
	vreport(same, file, line, detail, fmt, args);
	va_end(args);
	return same;
}

bool tap_is_mem(const void *got, const void *want, size_t size, const char *file, int line,
		const char *fmt, ...)
{
	const unsigned char *g = got, *w = want;
	char detail[160] = "";
	size_t at = 0, differ = 0;
	va_list args;

	for (size_t i = 0; i < size; i++) {
		if (g[i] != w[i] && differ++ == 0) {
			at = i;
		}
	}
	if (differ > 0) {
		snprintf(detail, sizeof(detail),
			 "%zu of %zu bytes differ\nfirst at %zu: got 0x%02x, expected 0x%02x\n",
			 differ, size, at, g[at], w[at]);
	}
	va_start(args, fmt);
	vreport(differ == 0, file, line, detail, fmt, args);
	va_end(args);
	return differ == 0;
}

void tap_diag(const char *fmt, ...)
{
	char text[TEXT_MAX], out[2 * TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	comment(out, sizeof(out), text);
	/* No lock: a child may call this, and the parent's lock may have been held at the fork. */
	put(out);
}

static void skip_some(unsigned int count, const char *reason)
{
	char text[TEXT_MAX + 64];

	lock();
	for (unsigned int i = 0; i < count; i++) {
		tap_count++;
		snprintf(text, sizeof(text), "ok %u # SKIP %s\n", tap_count, reason);
		put(text);
	}
	unlock();
}

void tap_skip(unsigned int count, const char *fmt, ...)
{
	char reason[TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	clean(reason);
	skip_some(count, reason);
}

static void skip_rest(const char *reason)
{
	char text[TEXT_MAX + 64];

	snprintf(text, sizeof(text), "1..0 # SKIP %s\n", reason);
	put(text);
	exit(0);
}

void tap_skip_all(const char *fmt, ...)
{
	char reason[TEXT_MAX];
	va_list args;

	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	clean(reason);
	skip_rest(reason);
	__builtin_unreachable();
}

/* Whether the word is one of those in MOEEP_TEST_REQUIRE. */
static bool required(const char *what)
{
	const char *list = getenv("MOEEP_TEST_REQUIRE");
	size_t len = strlen(what);

	while (list && *list != '\0') {
		size_t n = strcspn(list, " ,\t\n");

		if (n == len && strncmp(list, what, n) == 0) {
			return true;
		}
		list += n;
		list += strspn(list, " ,\t\n");
	}
	return false;
}

bool tap_require(const char *what, bool have, unsigned int count, const char *fmt, ...)
{
	char reason[TEXT_MAX / 2];
	va_list args;

	if (have) {
		return true;
	}
	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	if (!required(what)) {
		tap_skip(count, "no %s: %s", what, reason);
		return false;
	}
	for (unsigned int i = 0; i < count; i++) {
		ok(false, "%s is required by MOEEP_TEST_REQUIRE: %s", what, reason);
	}
	return false;
}

void tap_require_all(const char *what, bool have, const char *fmt, ...)
{
	char reason[TEXT_MAX / 2];
	va_list args;

	if (have) {
		return;
	}
	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	if (!required(what)) {
		tap_skip_all("no %s: %s", what, reason);
	}
	tap_plan(1);
	ok(false, "%s is required by MOEEP_TEST_REQUIRE: %s", what, reason);
	exit(tap_done());
}

bool tap_quick(void)
{
	const char *value = getenv("MOEEP_TEST_QUICK");

	return value && *value != '\0' && strcmp(value, "0") != 0;
}

void tap_bail(const char *fmt, ...)
{
	char reason[TEXT_MAX], text[TEXT_MAX + 16];
	va_list args;

	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	clean(reason);
	snprintf(text, sizeof(text), "Bail out! %s\n", reason);
	put(text);
	_exit(3);
}

int tap_done(void)
{
	char text[64];
	unsigned int count, failed;

	lock();
	count = tap_count;
	failed = tap_failed;
	if (!tap_have_plan) {
		tap_have_plan = true;
		tap_planned = count;
		snprintf(text, sizeof(text), "1..%u\n", count);
		put(text);
	}
	unlock();
	if (count != tap_planned) {
		tap_diag("planned %u checks, made %u", tap_planned, count);
	}
	return failed > 0 || count != tap_planned;
}
