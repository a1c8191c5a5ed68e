/* SPDX-License-Identifier: MIT */
/* bootstrap/unique_id.c - the name of a rendezvous, as bytes and as text. */
#include "config.h"

#include <string.h>

#include "bootstrap/unique_id.h"
#include "core/error.h"

static_assert(sizeof(moeep_unique_id_t) == sizeof(struct moeep_boot_id), "same bytes");
static_assert(MOEEP_UNIQUE_ID_TEXT == 2 * sizeof(moeep_unique_id_t) + 1, "hexadecimal text");

/* FNV-1a. Against accidents; who knows the secret can make any id. */
static uint64_t id_check(const struct moeep_boot_id *id)
{
	const unsigned char *bytes = (const unsigned char *)id;
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < offsetof(struct moeep_boot_id, check); i++) {
		hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
	}
	return hash;
}

void moeep_unique_id_make(const struct moeep_socket_address *address,
			  const unsigned char secret[MOEEP_BOOT_SECRET_BYTES],
			  moeep_unique_id_t *id)
{
	struct moeep_boot_id own;
	uint16_t port;
	int family;

	memset(&own, 0, sizeof(own));
	memcpy(own.magic, MOEEP_BOOT_ID_MAGIC, sizeof(own.magic));
	own.version = MOEEP_BOOT_VERSION;
	moeep_socket_address_get(address, &family, own.address, &port);
	own.family = (uint16_t)family;
	own.port = port;
	memcpy(own.secret, secret, sizeof(own.secret));
	own.check = id_check(&own);
	memcpy(id, &own, sizeof(own));
	explicit_bzero(&own, sizeof(own));
}

int moeep_unique_id_read(const moeep_unique_id_t *id, struct moeep_boot_id *content)
{
	struct moeep_boot_id own;

	memcpy(&own, id, sizeof(own));
	if (memcmp(own.magic, MOEEP_BOOT_ID_MAGIC, sizeof(own.magic)) != 0) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "id does not come from moeep_rendezvous_create()");
	}
	if (own.version != MOEEP_BOOT_VERSION) {
		return moeep_fail(MOEEP_ERR_INVALID, "id has version %u; this release takes %u",
				  own.version, MOEEP_BOOT_VERSION);
	}
	if (own.check != id_check(&own) || own.port == 0 ||
	    (own.family != MOEEP_BOOT_IPV4 && own.family != MOEEP_BOOT_IPV6)) {
		return moeep_fail(MOEEP_ERR_INVALID, "id is damaged");
	}
	*content = own;
	explicit_bzero(&own, sizeof(own));
	return MOEEP_OK;
}

int moeep_unique_id_format(const moeep_unique_id_t *id, char *text, size_t text_size)
{
	static const char digits[] = "0123456789abcdef";
	struct moeep_boot_id content;
	int rc;

	if (!id || !text) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is NULL", id ? "text" : "id");
	}
	if (text_size < MOEEP_UNIQUE_ID_TEXT) {
		return moeep_fail(MOEEP_ERR_INVALID, "text_size is %zu; at least %d are needed",
				  text_size, MOEEP_UNIQUE_ID_TEXT);
	}
	rc = moeep_unique_id_read(id, &content);
	if (rc) {
		return rc;
	}
	explicit_bzero(&content, sizeof(content));
	for (size_t i = 0; i < sizeof(id->bytes); i++) {
		text[2 * i] = digits[id->bytes[i] >> 4];
		text[2 * i + 1] = digits[id->bytes[i] & 15];
	}
	text[2 * sizeof(id->bytes)] = '\0';
	return MOEEP_OK;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9') {
		return c - '0';
	}
	if (c >= 'a' && c <= 'f') {
		return c - 'a' + 10;
	}
	if (c >= 'A' && c <= 'F') {
		return c - 'A' + 10;
	}
	return -1;
}

int moeep_unique_id_parse(const char *text, moeep_unique_id_t *id)
{
	static const char blanks[] = " \t\r\n";
	struct moeep_boot_id content;
	moeep_unique_id_t own;
	size_t length;
	int rc;

	if (!text || !id) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is NULL", text ? "id" : "text");
	}
	/* Blanks around it are those of a file or of a shell. */
	text += strspn(text, blanks);
	length = strcspn(text, blanks);
	if (text[length + strspn(text + length, blanks)] != '\0') {
		return moeep_fail(MOEEP_ERR_INVALID, "text has blanks within the id");
	}
	if (length != 2 * sizeof(own.bytes)) {
		return moeep_fail(MOEEP_ERR_INVALID, "text has %zu digits; an id has %zu", length,
				  2 * sizeof(own.bytes));
	}
	for (size_t i = 0; i < sizeof(own.bytes); i++) {
		int high = hex_digit(text[2 * i]);
		int low = hex_digit(text[2 * i + 1]);

		if (high < 0 || low < 0) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "text has something else than a hexadecimal digit at "
					  "position %zu",
					  2 * i + (high < 0 ? 0 : 1));
		}
		own.bytes[i] = (unsigned char)(high << 4 | low);
	}
	rc = moeep_unique_id_read(&own, &content);
	if (rc) {
		return rc;
	}
	explicit_bzero(&content, sizeof(content));
	*id = own;
	return MOEEP_OK;
}
