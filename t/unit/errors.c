/* SPDX-License-Identifier: MIT */
/* Results, details, sized structures, names, features and log lines. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/log.h"
#include "t/tap.h"

static void *other_thread(void *arg)
{
	is_str(moeep_error_detail(), "", "another thread starts with no detail");
	moeep_fail(MOEEP_ERR_STATE, "of the other thread");
	is_str(moeep_error_detail(), "of the other thread", "it has its own");
	return arg;
}

static void test_detail(void)
{
	char text[2000];
	pthread_t thread;

	is_str(moeep_error_detail(), "", "no detail before the first failure");
	is_int(moeep_fail(MOEEP_ERR_MISMATCH, "rank is %d", 7), MOEEP_ERR_MISMATCH,
	       "moeep_fail() returns its result");
	is_str(moeep_error_detail(), "rank is 7", "the detail is formatted");
	moeep_fail(MOEEP_ERR_MISMATCH, "creating: %s", moeep_error_detail());
	is_str(moeep_error_detail(), "creating: rank is 7", "a detail can go into the next");
	if (ok(pthread_create(&thread, NULL, other_thread, NULL) == 0, "a thread starts")) {
		pthread_join(thread, NULL);
	}
	is_str(moeep_error_detail(), "creating: rank is 7", "this thread's is untouched");

	errno = ENOENT;
	is_int(moeep_fail_errno("open %s", "x"), MOEEP_ERR_SYSTEM, "a failed system call");
	is_int(errno, ENOENT, "errno is kept");
	ok(strncmp(moeep_error_detail(), "open x: ", 8) == 0 &&
		   strstr(moeep_error_detail(), strerror(ENOENT)),
	   "its detail has call and cause: %s", moeep_error_detail());
	errno = ENOMEM;
	is_int(moeep_fail_errno("mmap"), MOEEP_ERR_NOMEM, "ENOMEM is no memory");

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	moeep_fail(MOEEP_ERR_INVALID, "%s", text);
	ok(strlen(moeep_error_detail()) > 100 && strlen(moeep_error_detail()) < sizeof(text),
	   "a long detail is cut");
}

struct known {
	size_t size;
	int32_t a;
	int32_t b;
	int64_t c;
};

struct newer {
	struct known known;
	int64_t d;
};

static void test_struct_in(void)
{
	struct newer user = {.known = {sizeof(user), 1, 2, 3}};
	struct known own;
	size_t tiny = 4;

	user.known.size = sizeof(own);
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_OK, "same size");
	ok(own.size == sizeof(own) && own.a == 1 && own.b == 2 && own.c == 3, "all is copied");

	memset(&own, 0xff, sizeof(own));
	user.known.size = offsetof(struct known, b);
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_OK, "an older caller");
	ok(own.a == 1 && own.b == 0 && own.c == 0, "fields that it lacks are zero");
	is_u64(own.size, sizeof(own), "our copy has our size");
	user.known.size = sizeof(size_t);
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_OK, "size alone");
	ok(own.a == 0 && own.b == 0 && own.c == 0, "all fields are zero");

	user.known.size = sizeof(user);
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_OK,
	       "a newer caller that leaves the tail zero");
	ok(own.a == 1 && own.c == 3 && own.size == sizeof(own), "the known part is copied");
	user.d = INT64_C(1) << 56;
	memset(&own, 0xee, sizeof(own));
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_ERR_INVALID,
	       "a newer caller that uses the tail");
	ok(strstr(moeep_error_detail(), "args->size is 32"), "the detail names it: %s",
	   moeep_error_detail());
	is_int(own.a, (int)0xeeeeeeee, "nothing is copied then");

	is_int(moeep_struct_in("args", NULL, &own, sizeof(own)), MOEEP_ERR_INVALID, "NULL");
	is_str(moeep_error_detail(), "args is NULL", "the detail names it");
	user.known.size = 0;
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_ERR_INVALID, "size 0");
	memcpy(&user, &tiny, sizeof(tiny));
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_ERR_INVALID, "size 4");
	user.known.size = SIZE_MAX;
	is_int(moeep_struct_in("args", &user, &own, sizeof(own)), MOEEP_ERR_INVALID,
	       "a size that was never set");
	ok(strstr(moeep_error_detail(), "18446744073709551615"), "the detail has its value");

	user.known.size = sizeof(own);
	user.known.a = 5;
	is_int(moeep_struct_in("args", &user, &user, sizeof(own)), MOEEP_OK, "in place");
	is_int(user.known.a, 5, "keeps the values");
}

static void test_struct_out(void)
{
	struct known own = {sizeof(own), 1, 2, 3};
	struct newer user;

	memset(&user, 0xff, sizeof(user));
	user.known.size = sizeof(user.known);
	is_int(moeep_struct_out("info", &user, &own, sizeof(own)), MOEEP_OK, "same size");
	ok(user.known.a == 1 && user.known.b == 2 && user.known.c == 3, "all is copied");
	is_int(user.d, -1, "and nothing beyond");

	memset(&user, 0xff, sizeof(user));
	user.known.size = offsetof(struct known, b);
	is_int(moeep_struct_out("info", &user, &own, sizeof(own)), MOEEP_OK, "an older caller");
	is_u64(user.known.size, offsetof(struct known, b), "keeps its size");
	ok(user.known.a == 1 && user.known.b == -1 && user.known.c == -1, "gets what it knows");

	memset(&user, 0xff, sizeof(user));
	user.known.size = sizeof(user);
	is_int(moeep_struct_out("info", &user, &own, sizeof(own)), MOEEP_OK, "a newer caller");
	ok(user.known.size == sizeof(user) && user.known.c == 3 && user.d == 0,
	   "gets zeros for the rest");

	is_int(moeep_struct_out("info", NULL, &own, sizeof(own)), MOEEP_ERR_INVALID, "NULL");
	is_str(moeep_error_detail(), "info is NULL", "the detail names it");
	user.known.size = 7;
	is_int(moeep_struct_out("info", &user, &own, sizeof(own)), MOEEP_ERR_INVALID, "size 7");
}

/* Every value has a text of its own, which is not that of a value from outside. */
static void test_distinct(const char *what, const char *(*name)(int), int first, int last)
{
	const char *outside = name(last + 1);
	int bad = 0;

	is_str(name(first - 1), outside, "%s: both sides are outside", what);
	is_str(name(1 << 30), outside, "%s: far outside", what);
	for (int i = first; i <= last; i++) {
		bad += !name(i) || !name(i)[0] || strcmp(name(i), outside) == 0;
		for (int k = first; k < i; k++) {
			bad += strcmp(name(i), name(k)) == 0;
		}
	}
	is_int(bad, 0, "%s: %d to %d are distinct", what, first, last);
}

static void test_names(void)
{
	static const struct {
		int dtype;
		size_t size;
		const char *name;
	} dtypes[] = {
		{MOEEP_BF16, 2, "bf16"},	 {MOEEP_FP16, 2, "fp16"},
		{MOEEP_FP32, 4, "fp32"},	 {MOEEP_FP8_E4M3, 1, "fp8_e4m3"},
		{MOEEP_FP8_E5M2, 1, "fp8_e5m2"}, {MOEEP_INT8, 1, "int8"},
		{MOEEP_UE8M0, 1, "ue8m0"},	 {MOEEP_INT32, 4, "int32"},
		{MOEEP_INT64, 8, "int64"},
	};

	test_distinct("results", moeep_strerror, MOEEP_ERR_NETWORK, MOEEP_OK);
	test_distinct("dtypes", moeep_dtype_name, MOEEP_DTYPE_DEFAULT, MOEEP_INT64);
	test_distinct("operations", moeep_op_name, MOEEP_OP_NONE, MOEEP_OP_LL_COMBINE_RECV);
	test_distinct("transports", moeep_transport_name, MOEEP_TRANSPORT_NONE,
		      MOEEP_TRANSPORT_IBGDA);
	for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
		is_str(moeep_dtype_name(dtypes[i].dtype), dtypes[i].name, "name of dtype %d",
		       dtypes[i].dtype);
		is_u64(moeep_dtype_size(dtypes[i].dtype), dtypes[i].size, "size of %s",
		       dtypes[i].name);
	}
	is_u64(moeep_dtype_size(MOEEP_DTYPE_DEFAULT), 0, "the default has no size");
	is_u64(moeep_dtype_size(99), 0, "what is no dtype has none");
	is_str(moeep_dtype_name(99), "unknown", "unknown dtype");
	is_str(moeep_op_name(MOEEP_OP_DISPATCH), "dispatch", "dispatch");
	is_str(moeep_op_name(MOEEP_OP_LL_COMBINE_RECV), "ll_combine_recv", "ll_combine_recv");
	is_str(moeep_op_name(-1), "unknown", "unknown operation");
	is_str(moeep_transport_name(MOEEP_TRANSPORT_SHM), "shm", "shm");
	is_str(moeep_transport_name(99), "unknown", "unknown transport");
}

static void test_features(void)
{
	static const char *const names[] = {"host",  "cuda", "verbs", "mlx5dv",
					    "ibgda", "rocm", "nettle"};
	moeep_feature_info_t info = {.size = sizeof(info)};
	unsigned i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		bool on = i == 0 || (i == 1 && MOEEP_HAVE_CUDA) || (i == 6 && MOEEP_HAVE_NETTLE);

		is_int(moeep_feature_query(i, &info), MOEEP_OK, "feature %u", i);
		is_str(info.name, names[i], "is %s", names[i]);
		is_int(info.enabled, on, "%s is %s", names[i], on ? "on" : "off");
		ok(info.reason && info.reason[0], "reason: %s", info.reason);
	}
	is_int(moeep_feature_query(i, &info), MOEEP_ERR_INVALID, "there are no more");
	ok(strstr(moeep_error_detail(), "index is 7"), "the detail has the index");
	is_int(moeep_feature_query(0, NULL), MOEEP_ERR_INVALID, "info is NULL");
}

struct line {
	int calls;
	int level;
	char text[2048];
};

static void log_line(void *context, int level, const char *text)
{
	struct line *line = context;

	line->calls++;
	line->level = level;
	snprintf(line->text, sizeof(line->text), "%s", text);
}

static void test_log(void)
{
	struct line line = {0};
	struct moeep_log log = {
		.fn = log_line, .context = &line, .fd = -1, .level = MOEEP_LOG_WARN, .rank = 3};
	char text[3000];
	char got[4096];
	ssize_t n = -1;
	int ends[2];
	int saved;

	moeep_log(&log, MOEEP_LOG_INFO, "not wanted");
	is_int(line.calls, 0, "a line above the level is dropped");
	errno = EBUSY;
	moeep_log(&log, MOEEP_LOG_WARN, "took %d ms", 5);
	is_int(errno, EBUSY, "errno is kept");
	is_int(line.calls, 1, "a line of the level is not");
	is_int(line.level, MOEEP_LOG_WARN, "its level");
	is_str(line.text, "moeep[3]: took 5 ms", "its text");
	memset(text, 'y', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	moeep_log(&log, MOEEP_LOG_ERROR, "%s", text);
	ok(strlen(line.text) > 500 && strlen(line.text) < sizeof(text), "a long line is cut");
	moeep_log(NULL, MOEEP_LOG_ERROR, "nowhere");
	is_int(line.calls, 2, "no log, no line");

	if (!ok(pipe(ends) == 0, "a pipe for standard error")) {
		return;
	}
	fflush(stderr);
	saved = dup(STDERR_FILENO);
	dup2(ends[1], STDERR_FILENO);
	log.fn = NULL;
	moeep_log(&log, MOEEP_LOG_ERROR, "lost %s", "it");
	log.rank = -1;
	moeep_log(&log, MOEEP_LOG_WARN, "%s", text);
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(ends[1]);
	n = read(ends[0], got, sizeof(got) - 1);
	close(ends[0]);
	got[n > 0 ? n : 0] = '\0';
	ok(strncmp(got, "moeep[3]: error: lost it\nmoeep: warning: yyy", 44) == 0,
	   "standard error gets the lines");
	ok(n > 0 && got[n - 1] == '\n', "a line that was cut ends all the same");
}

int main(void)
{
	test_detail();
	test_struct_in();
	test_struct_out();
	test_names();
	test_features();
	test_log();
	return tap_done();
}
