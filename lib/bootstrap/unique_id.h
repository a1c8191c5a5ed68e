/* SPDX-License-Identifier: MIT */
/* bootstrap/unique_id.h - making and reading unique ids. */
#ifndef MOEEP_BOOTSTRAP_UNIQUE_ID_H
#define MOEEP_BOOTSTRAP_UNIQUE_ID_H

#include <moeep/moeep.h>

#include "bootstrap/socket.h"
#include "bootstrap/wire.h"

void moeep_unique_id_make(const struct moeep_socket_address *address,
			  const unsigned char secret[MOEEP_BOOT_SECRET_BYTES],
			  moeep_unique_id_t *id);

/* MOEEP_ERR_INVALID if id is not one that moeep_unique_id_make() made. */
int moeep_unique_id_read(const moeep_unique_id_t *id, struct moeep_boot_id *content);

struct moeep_settings;

/*
 * The id that MOEEP_ID holds, or the file that MOEEP_ID_FILE names, for which it waits.
 * MOEEP_ERR_NOT_READY, without a detail, if neither is set.
 */
int moeep_unique_id_find(const struct moeep_settings *settings, uint32_t timeout_ms,
			 moeep_unique_id_t *id);

#endif
