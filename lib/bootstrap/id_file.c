/* SPDX-License-Identifier: MIT */
/*
 * bootstrap/id_file.c - ids that ranks get from the environment, as text or as the name of a file,
 * and the file itself. An id holds a secret, so the file is one that nobody else may read.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bootstrap/socket.h"
#include "bootstrap/unique_id.h"
#include "core/error.h"
#include "core/settings.h"

#define LOOK_MS 50
/* The text, and blanks around it. */
#define FILE_BYTES 1024

/* An id in hand, or MOEEP_ERR_NOT_READY if there is none yet, without a detail. */
static int read_once(const char *path, moeep_unique_id_t *id)
{
	char text[FILE_BYTES];
	struct stat status;
	size_t used = 0;
	ssize_t n;
	int rc;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		return errno == ENOENT
			       ? MOEEP_ERR_NOT_READY
			       : moeep_fail_errno("open %s, which MOEEP_ID_FILE names", path);
	}
	if (fstat(fd, &status)) {
		rc = moeep_fail_errno("fstat %s", path);
		goto out_close;
	}
	if (!S_ISREG(status.st_mode) || (status.st_uid != geteuid() && status.st_uid != 0)) {
		rc = moeep_fail(MOEEP_ERR_INVALID,
				"MOEEP_ID_FILE names %s, which is %s: it may be another's trap",
				path, S_ISREG(status.st_mode) ? "another user's" : "no file");
		goto out_close;
	}
	if (status.st_mode & (S_IRWXG | S_IRWXO)) {
		rc = moeep_fail(MOEEP_ERR_INVALID,
				"MOEEP_ID_FILE names %s, whose mode is %04o: others may read or "
				"write the secret in it; it is to be 0600",
				path, (unsigned)(status.st_mode & 07777));
		goto out_close;
	}
	do {
		n = read(fd, text + used, sizeof(text) - 1 - used);
		used += n > 0 ? (size_t)n : 0;
	} while (n > 0 || (n < 0 && errno == EINTR));
	if (n < 0) {
		rc = moeep_fail_errno("read %s", path);
		goto out_wipe;
	}
	text[used] = '\0';
	/* Somebody may be writing it. */
	rc = used < MOEEP_UNIQUE_ID_TEXT - 1 ? MOEEP_ERR_NOT_READY
					     : moeep_unique_id_parse(text, id);
	if (rc != MOEEP_OK && rc != MOEEP_ERR_NOT_READY) {
		rc = moeep_fail(rc, "what is in %s, which MOEEP_ID_FILE names, is no id", path);
	}

out_wipe:
	explicit_bzero(text, sizeof(text));
out_close:
	close(fd);
	return rc;
}

static int read_file(const char *path, uint32_t timeout_ms, moeep_unique_id_t *id)
{
	const struct timespec look = {.tv_nsec = LOOK_MS * 1000000};
	int64_t deadline = moeep_socket_deadline(timeout_ms);
	int rc;

	for (;;) {
		rc = read_once(path, id);
		if (rc != MOEEP_ERR_NOT_READY) {
			return rc;
		}
		if (moeep_socket_now() >= deadline) {
			return moeep_fail(MOEEP_ERR_RENDEZVOUS,
					  "%s, which MOEEP_ID_FILE names, has had no id within "
					  "the time-out",
					  path);
		}
		nanosleep(&look, NULL);
	}
}

int moeep_unique_id_find(const struct moeep_settings *settings, uint32_t timeout_ms,
			 moeep_unique_id_t *id)
{
	int rc;

	if (settings->id[0]) {
		rc = moeep_unique_id_parse(settings->id, id);
		/* Without what it is: that may be most of a secret. */
		return rc ? moeep_fail(rc, "MOEEP_ID is no id") : MOEEP_OK;
	}
	if (settings->id_file[0]) {
		return read_file(settings->id_file, timeout_ms, id);
	}
	return MOEEP_ERR_NOT_READY;
}

int moeep_unique_id_save(const moeep_unique_id_t *id, const char *path)
{
	char text[MOEEP_UNIQUE_ID_TEXT];
	char temporary[PATH_MAX];
	size_t used = 0;
	int fd;
	int rc;

	if (!path || !path[0]) {
		return moeep_fail(MOEEP_ERR_INVALID, "path is %s", path ? "empty" : "NULL");
	}
	if (snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= (int)sizeof(temporary)) {
		return moeep_fail(MOEEP_ERR_INVALID, "path has %zu bytes; at most %zu are taken",
				  strlen(path), sizeof(temporary) - sizeof(".XXXXXX"));
	}
	rc = moeep_unique_id_format(id, text, sizeof(text));
	if (rc) {
		return rc;
	}
	/* Beside the file, with mode 0600, and then in its place: nobody sees a part of it. */
	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0) {
		rc = moeep_fail_errno("make %s", temporary);
		goto out_wipe;
	}
	text[sizeof(text) - 1] = '\n';
	while (used < sizeof(text)) {
		ssize_t n = write(fd, text + used, sizeof(text) - used);

		if (n < 0 && errno != EINTR) {
			rc = moeep_fail_errno("write %s", temporary);
			close(fd);
			goto err_unlink;
		}
		used += n > 0 ? (size_t)n : 0;
	}
	if (close(fd)) {
		rc = moeep_fail_errno("write %s", temporary);
		goto err_unlink;
	}
	if (rename(temporary, path)) {
		rc = moeep_fail_errno("rename %s to %s", temporary, path);
		goto err_unlink;
	}
	goto out_wipe;

err_unlink:
	(void)unlink(temporary);
out_wipe:
	explicit_bzero(text, sizeof(text));
	return rc;
}
