/* SPDX-License-Identifier: MIT */
/*
 * bootstrap/proof.h - how a rank and the rendezvous prove to each other that they know the id's
 * secret: HMAC-SHA-256 (RFC 2104) under it of what both have said. Neither the secret nor anything
 * that serves another connection goes over the network.
 */
#ifndef MOEEP_BOOTSTRAP_PROOF_H
#define MOEEP_BOOTSTRAP_PROOF_H

#include <stdbool.h>

#include "bootstrap/wire.h"

/* The way of this build, MOEEP_BOOT_AUTH_HMAC or MOEEP_BOOT_AUTH_SECRET. */
extern const uint32_t moeep_boot_auth;

enum moeep_boot_prover { MOEEP_BOOT_PROVER_RANK, MOEEP_BOOT_PROVER_HUB };

/* hello's nonce; join's nonce, rank and num_ranks; what else it holds does not count. */
void moeep_boot_prove(const unsigned char secret[MOEEP_BOOT_SECRET_BYTES],
		      enum moeep_boot_prover prover,
		      const unsigned char hub_nonce[MOEEP_BOOT_NONCE_BYTES],
		      const struct moeep_boot_join *join,
		      unsigned char proof[MOEEP_BOOT_PROOF_BYTES]);

/* Is that the proof? In a time that does not depend on where it differs. */
bool moeep_boot_proved(const unsigned char secret[MOEEP_BOOT_SECRET_BYTES],
		       enum moeep_boot_prover prover,
		       const unsigned char hub_nonce[MOEEP_BOOT_NONCE_BYTES],
		       const struct moeep_boot_join *join,
		       const unsigned char proof[MOEEP_BOOT_PROOF_BYTES]);

#endif
