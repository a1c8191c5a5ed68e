/* SPDX-License-Identifier: MIT */
/* The reader of NumPy files takes what NumPy writes, and refuses all else without harm. */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "t/tap.h"
#include "tools/npy.h"

#define ROOM 8192

/* A file of a version with this header text; returns its size. */
static size_t make(unsigned char *file, int version, const char *header, const void *data,
		   size_t data_bytes)
{
	size_t length = strlen(header), start = version == 1 ? 10 : 12;

	memcpy(file, "\x93NUMPY", 6);
	file[6] = (unsigned char)version;
	file[7] = 0;
	for (size_t i = 0; i < start - 8; i++) {
		file[8 + i] = (unsigned char)(length >> (8 * i));
	}
	memcpy(file + start, header, length);
	if (data_bytes > 0) {
		memcpy(file + start + length, data, data_bytes);
	}
	return start + length + data_bytes;
}

/* Parse a copy that ends where its memory ends, so that a sanitizer sees a read past it. */
static int parse(const unsigned char *file, size_t size, struct npy *npy, char error[200])
{
	unsigned char *exact = malloc(size ? size : 1);
	int rc;

	if (!exact) {
		tap_bail("no memory");
	}
	memcpy(exact, file, size);
	error[0] = '\0';
	rc = npy_parse(exact, size, npy, error, 200);
	free(exact);
	return rc;
}

static void good(void)
{
	static const int32_t ints[6] = {0, 1, -1, 255, 65535, 7};
	static const int64_t longs[3] = {5, -1, INT64_C(1) << 40};
	static const float floats[2] = {0.5f, -2.0f};
	unsigned char file[ROOM];
	struct npy npy;
	char error[200];
	size_t size;

	for (int version = 1; version <= 3; version++) {
		size = make(file, version,
			    "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }      \n",
			    ints, sizeof(ints));
		if (!ok(parse(file, size, &npy, error) == 0, "version %d is read", version)) {
			tap_diag("%s", error);
			continue;
		}
		ok(npy.type == NPY_INT32 && npy.dimensions == 2 && npy.rows == 2 &&
			   npy.columns == 3,
		   "version %d: type and shape", version);
		is_mem(npy.data, ints, sizeof(ints), "version %d: data", version);
		is_int(npy_integer(&npy, 2), -1, "version %d: an element", version);
		npy_free(&npy);
	}
	size = make(file, 1, "{\"shape\": (3,), \"fortran_order\": False, \"descr\": \"<i8\"}\n",
		    longs, sizeof(longs));
	ok(parse(file, size, &npy, error) == 0 && npy.type == NPY_INT64 && npy.dimensions == 1 &&
		   npy.rows == 3 && npy.columns == 1 && npy_integer(&npy, 2) == INT64_C(1) << 40,
	   "one dimension, other quotes and order");
	npy_free(&npy);
	size = make(file, 1, "{'descr':'<f4','fortran_order':False,'shape':(1,2)}\n", floats,
		    sizeof(floats));
	ok(parse(file, size, &npy, error) == 0 && npy.type == NPY_FLOAT32 &&
		   ((const float *)npy.data)[1] == -2.0f,
	   "float32, no blanks");
	npy_free(&npy);
	size = make(file, 1, "{'descr': '<i4', 'fortran_order': False, 'shape': (0, 8), }\n", NULL,
		    0);
	ok(parse(file, size, &npy, error) == 0 && npy.rows == 0 && npy.data == NULL,
	   "an array without elements");
	npy_free(&npy);
}

static void bad_headers(void)
{
	static const struct {
		const char *header;
		const char *what;
	} cases[] = {
		{"{'descr': '>i4', 'fortran_order': False, 'shape': (1,), }\n", "big-endian"},
		{"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }\n", "float64"},
		{"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", "objects"},
		{"{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,), }\n", "records"},
		{"{'descr': '<i4', 'fortran_order': True, 'shape': (1,), }\n", "Fortran order"},
		{"{'descr': '<i4', 'fortran_order': 0, 'shape': (1,), }\n", "order not a boolean"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (), }\n", "no dimension"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 1), }\n",
		 "three dimensions"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': 1, }\n", "shape not a tuple"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1), }\n", "a mere bracket"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (-1,), }\n", "negative"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1L,), }\n", "a long"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (01,), }\n", "octal"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999999999999999,), "
		 "}\n",
		 "more than any number"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n",
		 "a product that wraps to 0"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1073741824, 1073741824), }\n",
		 "a product too large"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1,)\n", "no closing brace"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1,", "no newline"},
		{"{'descr': '<i4', 'fortran_order': False}\n", "no shape"},
		{"{'descr': '<i4', 'shape': (1,)}\n", "no order"},
		{"{'fortran_order': False, 'shape': (1,)}\n", "no type"},
		{"{'descr': '<i4', 'descr': '<i8', 'fortran_order': False, 'shape': (1,)}\n",
		 "a key twice"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1,), 'x': 1}\n",
		 "an unknown key"},
		{"{'descr': '<i4', 'fortran_order': False, 'shape': (1,)} x\n", "a tail"},
		{"{'descr': '<i4' 'fortran_order': False, 'shape': (1,)}\n", "a comma lacks"},
		{"{'descr': '<i\\x34', 'fortran_order': False, 'shape': (1,)}\n", "an escape"},
		{"{'descr': '<i4, 'fortran_order': False, 'shape': (1,)}\n", "quotes do not match"},
		{"{'descr': '<iiiiiiiiiiiiiiiiiiiiiiii4', 'fortran_order': False, 'shape': (1,)}\n",
		 "a long type"},
		{"__import__('os').system('true')\n", "a program"},
		{"{}\n", "an empty dictionary"},
		{"\n", "an empty line"},
		{"", "nothing"},
	};
	static const int32_t one = 1;
	unsigned char file[ROOM];
	struct npy npy;
	char error[200];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		size_t size = make(file, 1, cases[i].header, &one, sizeof(one));

		ok(parse(file, size, &npy, error) == -1 && error[0] != '\0', "refused: %s: %s",
		   cases[i].what, error);
	}
}

static void bad_files(void)
{
	static const char header[] =
		"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }          \n";
	static const int32_t data[4] = {1, 2, 3, 4};
	unsigned char file[ROOM], other[ROOM];
	struct npy npy;
	char error[200];
	size_t size = make(file, 1, header, data, sizeof(data));
	unsigned refused = 0, survived = 0;

	for (size_t cut = 0; cut < size; cut++) {
		refused += parse(file, cut, &npy, error) == -1;
	}
	is_u64(refused, size, "cut anywhere, it is refused");
	file[size] = 0;
	ok(parse(file, size + 1, &npy, error) == -1, "a byte more is refused: %s", error);
	memcpy(other, file, size);
	other[6] = 4;
	ok(parse(other, size, &npy, error) == -1, "an unknown version is refused: %s", error);
	other[6] = 1;
	other[7] = 1;
	ok(parse(other, size, &npy, error) == -1, "an unknown minor version is refused: %s", error);
	memcpy(other, file, size);
	other[8] = other[9] = 0xff;
	ok(parse(other, size, &npy, error) == -1, "a header past the end is refused: %s", error);
	other[6] = 2;
	memset(other + 8, 0xff, 4);
	ok(parse(other, size, &npy, error) == -1, "4 GiB of header are refused: %s", error);
	/* Any single byte may be anything: it is read or refused, and never more memory touched. */
	for (size_t at = 0; at < size; at++) {
		for (int value = 0; value < 256; value++) {
			memcpy(other, file, size);
			other[at] = (unsigned char)value;
			if (parse(other, size, &npy, error) == 0) {
				npy_free(&npy);
			}
			survived++;
		}
	}
	is_u64(survived, size * 256, "every value of every byte is survived");
}

static void files(void)
{
	char directory[] = "/tmp/moeep-npy.XXXXXX", path[80], error[200];
	static const char header[] = "{'descr': '<i4', 'fortran_order': False, 'shape': (1,), }\n";
	static const int32_t one = 1;
	unsigned char bytes[ROOM];
	size_t size = make(bytes, 1, header, &one, sizeof(one));
	struct npy npy;
	FILE *file;

	if (!mkdtemp(directory)) {
		tap_bail("mkdtemp failed");
	}
	snprintf(path, sizeof(path), "%s/a.npy", directory);
	ok(npy_read(path, &npy, error, sizeof(error)) == -1, "no file: %s", error);
	ok(npy_read(directory, &npy, error, sizeof(error)) == -1, "a directory: %s", error);
	if (mkfifo(path, 0600) == 0) {
		ok(npy_read(path, &npy, error, sizeof(error)) == -1, "a FIFO: %s", error);
		unlink(path);
	} else {
		tap_skip(1, "no FIFO can be made");
	}
	file = fopen(path, "w");
	if (!file || fclose(file)) {
		tap_bail("%s cannot be written", path);
	}
	ok(npy_read(path, &npy, error, sizeof(error)) == -1, "an empty file: %s", error);
	ok(truncate(path, NPY_MAX_BYTES + 1) == 0 &&
		   npy_read(path, &npy, error, sizeof(error)) == -1,
	   "a huge file: %s", error);
	file = fopen(path, "w");
	if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) {
		tap_bail("%s cannot be written", path);
	}
	ok(npy_read(path, &npy, error, sizeof(error)) == 0 && npy_integer(&npy, 0) == 1,
	   "a good file");
	npy_free(&npy);
	unlink(path);
	rmdir(directory);
}

int main(void)
{
	good();
	bad_headers();
	bad_files();
	files();
	return tap_done();
}
