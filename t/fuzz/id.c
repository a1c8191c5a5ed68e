/* SPDX-License-Identifier: MIT */
/* Fuzz target: unique ids as text. One that is taken is written the same. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include <moeep/moeep.h>

#include "t/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	char again[MOEEP_UNIQUE_ID_TEXT];
	moeep_unique_id_t id, back;

	if (!text) {
		return 0;
	}
	memcpy(text, data, size);
	text[size] = '\0';
	if (moeep_unique_id_parse(text, &id) == MOEEP_OK &&
	    (moeep_unique_id_format(&id, again, sizeof(again)) != MOEEP_OK ||
	     moeep_unique_id_parse(again, &back) != MOEEP_OK ||
	     memcmp(&id, &back, sizeof(id)) != 0)) {
		abort();
	}
	free(text);
	return 0;
}
