/* SPDX-License-Identifier: MIT */
/* bootstrap/proof.c - proofs that a rank and the rendezvous know the secret. */
#include "config.h"

#include <string.h>

#include "bootstrap/proof.h"

#if MOEEP_HAVE_NETTLE
#include <nettle/hmac.h>
#include <nettle/version.h>

const uint32_t moeep_boot_auth = MOEEP_BOOT_AUTH_HMAC;

/* What is signed. The text keeps the two sides' proofs apart, and those of other versions. */
struct claim {
	char text[16];
	unsigned char hub_nonce[MOEEP_BOOT_NONCE_BYTES];
	unsigned char rank_nonce[MOEEP_BOOT_NONCE_BYTES];
	int32_t rank;
	int32_t num_ranks;
};
static_assert(sizeof(struct claim) == 88, "the same bytes on both sides");

void moeep_boot_prove(const unsigned char secret[MOEEP_BOOT_SECRET_BYTES],
		      enum moeep_boot_prover prover,
		      const unsigned char hub_nonce[MOEEP_BOOT_NONCE_BYTES],
		      const struct moeep_boot_join *join,
		      unsigned char proof[MOEEP_BOOT_PROOF_BYTES])
{
	struct claim claim = {.rank = join->rank, .num_ranks = join->num_ranks};
	struct hmac_sha256_ctx context;
	const char *text = prover == MOEEP_BOOT_PROVER_HUB ? "moeep 1 hub" : "moeep 1 rank";

	static_assert(MOEEP_BOOT_PROOF_BYTES == SHA256_DIGEST_SIZE, "all of the digest");
	memcpy(claim.text, text, strlen(text));
	memcpy(claim.hub_nonce, hub_nonce, sizeof(claim.hub_nonce));
	memcpy(claim.rank_nonce, join->nonce, sizeof(claim.rank_nonce));
	hmac_sha256_set_key(&context, MOEEP_BOOT_SECRET_BYTES, secret);
	hmac_sha256_update(&context, sizeof(claim), (const uint8_t *)&claim);
#if NETTLE_VERSION_MAJOR >= 4
	hmac_sha256_digest(&context, proof);
#else
	hmac_sha256_digest(&context, MOEEP_BOOT_PROOF_BYTES, proof);
#endif
	explicit_bzero(&context, sizeof(context));
}

#else

const uint32_t moeep_boot_auth = MOEEP_BOOT_AUTH_SECRET;

/* The hub proves nothing. */
void moeep_boot_prove(const unsigned char secret[MOEEP_BOOT_SECRET_BYTES],
		      enum moeep_boot_prover prover,
		      const unsigned char hub_nonce[MOEEP_BOOT_NONCE_BYTES],
		      const struct moeep_boot_join *join,
		      unsigned char proof[MOEEP_BOOT_PROOF_BYTES])
{
	(void)hub_nonce;
	(void)join;
	static_assert(MOEEP_BOOT_PROOF_BYTES == MOEEP_BOOT_SECRET_BYTES, "the secret is the proof");
	memset(proof, 0, MOEEP_BOOT_PROOF_BYTES);
	if (prover == MOEEP_BOOT_PROVER_RANK) {
		memcpy(proof, secret, MOEEP_BOOT_PROOF_BYTES);
	}
}

#endif

bool moeep_boot_proved(const unsigned char secret[MOEEP_BOOT_SECRET_BYTES],
		       enum moeep_boot_prover prover,
		       const unsigned char hub_nonce[MOEEP_BOOT_NONCE_BYTES],
		       const struct moeep_boot_join *join,
		       const unsigned char proof[MOEEP_BOOT_PROOF_BYTES])
{
	unsigned char expected[MOEEP_BOOT_PROOF_BYTES];
	unsigned char difference = 0;

	moeep_boot_prove(secret, prover, hub_nonce, join, expected);
	for (size_t i = 0; i < sizeof(expected); i++) {
		difference |= (unsigned char)(expected[i] ^ proof[i]);
	}
	explicit_bzero(expected, sizeof(expected));
	return difference == 0;
}
