/* SPDX-License-Identifier: MIT */
/* tools/npy.c - a strict reader of NumPy array files. */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "npy.h"

/* The header is a Python dictionary literal; this reads one, and only what NumPy writes. */
struct cursor {
	const char *at;
	const char *end;
};

#define HEADER_MAX 65536

static void skip_blanks(struct cursor *c)
{
	while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n')) {
		c->at++;
	}
}

static bool take(struct cursor *c, char wanted)
{
	skip_blanks(c);
	if (c->at < c->end && *c->at == wanted) {
		c->at++;
		return true;
	}
	return false;
}

/* A quoted string without escapes; false if there is none or it does not fit. */
static bool take_string(struct cursor *c, char *text, size_t size)
{
	size_t length = 0;
	char quote;

	skip_blanks(c);
	if (c->at == c->end || (*c->at != '\'' && *c->at != '"')) {
		return false;
	}
	quote = *c->at++;
	while (c->at < c->end && *c->at != quote) {
		if (*c->at == '\\' || *c->at == '\0' || length + 1 >= size) {
			return false;
		}
		text[length++] = *c->at++;
	}
	if (c->at == c->end) {
		return false;
	}
	c->at++;
	text[length] = '\0';
	return true;
}

static bool take_word(struct cursor *c, const char *word)
{
	size_t length = strlen(word);

	skip_blanks(c);
	if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0) {
		return false;
	}
	c->at += length;
	return true;
}

static bool take_number(struct cursor *c, int64_t *value)
{
	int64_t number = 0;
	const char *start;

	skip_blanks(c);
	start = c->at;
	while (c->at < c->end && *c->at >= '0' && *c->at <= '9') {
		/* No file that is read has so many elements. */
		if (number > NPY_MAX_BYTES) {
			return false;
		}
		number = number * 10 + (*c->at++ - '0');
	}
	*value = number;
	return c->at > start && (c->at - start == 1 || *start != '0');
}

/* "(5,)" or "(5, 8)" */
static const char *take_shape(struct cursor *c, struct npy *npy)
{
	if (!take(c, '(')) {
		return "shape is not a tuple";
	}
	if (take(c, ')')) {
		return "it has no dimension; 1 or 2 are needed";
	}
	if (!take_number(c, &npy->rows)) {
		return "shape has a number that is not valid";
	}
	if (!take(c, ',')) {
		return "shape is not a tuple";
	}
	npy->dimensions = 1;
	npy->columns = 1;
	if (take(c, ')')) {
		return NULL;
	}
	if (!take_number(c, &npy->columns)) {
		return "shape has a number that is not valid";
	}
	npy->dimensions = 2;
	if (take(c, ')') || (take(c, ',') && take(c, ')'))) {
		return NULL;
	}
	return "it has more than 2 dimensions, or shape is not a tuple";
}

static const char *take_descr(struct cursor *c, struct npy *npy)
{
	static const struct {
		const char *text;
		enum npy_type type;
	} types[] = {{"<i4", NPY_INT32}, {"<i8", NPY_INT64}, {"<f4", NPY_FLOAT32}};
	char text[16];

	if (!take_string(c, text, sizeof(text))) {
		return "descr is not the name of a plain type";
	}
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		if (!strcmp(text, types[i].text)) {
			npy->type = types[i].type;
			return NULL;
		}
	}
	return "its type is not one of <i4, <i8 and <f4";
}

static const char *parse_header(const char *text, size_t size, struct npy *npy)
{
	struct cursor c = {text, text + size};
	bool seen[3] = {false, false, false};
	const char *wrong;
	char key[16];

	if (size == 0 || text[size - 1] != '\n') {
		return "the header does not end with a newline";
	}
	if (!take(&c, '{')) {
		return "the header is not a dictionary";
	}
	while (!take(&c, '}')) {
		int which;

		if (!take_string(&c, key, sizeof(key)) || !take(&c, ':')) {
			return "the header is not a dictionary with text keys";
		}
		which = !strcmp(key, "descr")		? 0
			: !strcmp(key, "fortran_order") ? 1
			: !strcmp(key, "shape")		? 2
							: -1;
		if (which < 0) {
			return "the header has a key other than descr, fortran_order and shape";
		}
		if (seen[which]) {
			return "the header has a key twice";
		}
		seen[which] = true;
		wrong = NULL;
		if (which == 0) {
			wrong = take_descr(&c, npy);
		} else if (which == 2) {
			wrong = take_shape(&c, npy);
		} else if (take_word(&c, "True")) {
			wrong = "it is in Fortran order; C order is needed";
		} else if (!take_word(&c, "False")) {
			wrong = "fortran_order is neither True nor False";
		}
		if (wrong) {
			return wrong;
		}
		if (!take(&c, ',')) {
			if (take(&c, '}')) {
				break;
			}
			return "the header is not a dictionary";
		}
	}
	skip_blanks(&c);
	if (c.at != c.end) {
		return "something follows the dictionary in the header";
	}
	if (!seen[0] || !seen[1] || !seen[2]) {
		return "the header lacks descr, fortran_order or shape";
	}
	return NULL;
}

/* Where the header and the data are. */
static const char *split(const unsigned char *bytes, size_t size, size_t *start, size_t *length)
{
	if (size < 10 || memcmp(bytes, "\x93NUMPY", 6) != 0) {
		return "it is not a NumPy array file";
	}
	if (bytes[6] < 1 || bytes[6] > 3 || bytes[7] != 0) {
		return "its format version is not 1.0, 2.0 or 3.0";
	}
	if (bytes[6] == 1) {
		*start = 10;
		*length = (size_t)bytes[8] | (size_t)bytes[9] << 8;
	} else {
		if (size < 12) {
			return "it ends inside the header";
		}
		*start = 12;
		*length = (size_t)bytes[8] | (size_t)bytes[9] << 8 | (size_t)bytes[10] << 16 |
			  (size_t)bytes[11] << 24;
	}
	if (*length > HEADER_MAX) {
		return "its header is too long";
	}
	if (*length > size - *start) {
		return "it ends inside the header";
	}
	return NULL;
}

int npy_parse(const void *bytes, size_t size, struct npy *npy, char *error, size_t error_size)
{
	struct npy own = {.data = NULL};
	const char *wrong;
	size_t start = 0, length = 0, element;
	int64_t elements;

	wrong = split(bytes, size, &start, &length);
	if (!wrong) {
		wrong = parse_header((const char *)bytes + start, length, &own);
	}
	if (wrong) {
		snprintf(error, error_size, "%s", wrong);
		return -1;
	}
	start += length;
	element = own.type == NPY_INT64 ? 8 : 4;
	/* take_number() keeps both below 2^34, so the product could still be too large. */
	if (own.columns > 0 && own.rows > NPY_MAX_BYTES / own.columns) {
		snprintf(error, error_size, "its shape is too large");
		return -1;
	}
	elements = own.rows * own.columns;
	if (size - start != (uint64_t)elements * element) {
		snprintf(error, error_size,
			 "it has %zu bytes of data, its shape and type make %llu", size - start,
			 (unsigned long long)elements * element);
		return -1;
	}
	if (elements > 0) {
		own.data = malloc((size_t)elements * element);
		if (!own.data) {
			snprintf(error, error_size, "no memory for %lld elements",
				 (long long)elements);
			return -1;
		}
		memcpy(own.data, (const unsigned char *)bytes + start, (size_t)elements * element);
	}
	*npy = own;
	return 0;
}

int npy_read(const char *path, struct npy *npy, char *error, size_t error_size)
{
	unsigned char *bytes = NULL;
	struct stat st;
	size_t size, done = 0;
	int rc = -1;
	int fd;

	/* Not to wait for the other end of a FIFO, which is then refused. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) != 0) {
		snprintf(error, error_size, "%s", strerror(errno));
		goto out;
	}
	if (!S_ISREG(st.st_mode)) {
		snprintf(error, error_size, "it is not a regular file");
		goto out;
	}
	if (st.st_size > NPY_MAX_BYTES) {
		snprintf(error, error_size, "it has %lld bytes; at most %lld are read",
			 (long long)st.st_size, (long long)NPY_MAX_BYTES);
		goto out;
	}
	size = (size_t)st.st_size;
	bytes = malloc(size + 1);
	if (!bytes) {
		snprintf(error, error_size, "no memory for %zu bytes", size);
		goto out;
	}
	while (done < size) {
		ssize_t n = read(fd, bytes + done, size - done);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			snprintf(error, error_size, "%s",
				 n < 0 ? strerror(errno) : "it became shorter while it was read");
			goto out;
		}
		done += (size_t)n;
	}
	rc = npy_parse(bytes, size, npy, error, error_size);

out:
	free(bytes);
	if (fd >= 0) {
		close(fd);
	}
	return rc;
}

void npy_free(struct npy *npy)
{
	free(npy->data);
	memset(npy, 0, sizeof(*npy));
}

int64_t npy_integer(const struct npy *npy, int64_t index)
{
	switch (npy->type) {
	case NPY_INT32:
		return ((const int32_t *)npy->data)[index];
	case NPY_INT64:
		return ((const int64_t *)npy->data)[index];
	case NPY_FLOAT32:
		break;
	}
	return 0;
}
