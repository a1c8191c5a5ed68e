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

#endif
