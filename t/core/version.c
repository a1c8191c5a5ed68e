/* SPDX-License-Identifier: MIT */
/* The library's version agrees with the headers' and with itself. */
#include <moeep/base.h>
#include <stdio.h>

#include "t/tap.h"

int main(void)
{
	char text[32];
	uint32_t v = moeep_version();

	tap_plan(4);
	is_int(v, MOEEP_VERSION_NUMBER, "moeep_version() is the headers' number");
	is_str(moeep_version_string(), MOEEP_VERSION_STRING, "the text is the headers'");
	snprintf(text, sizeof(text), "%u.%u.%u", v >> 16, v >> 8 & 0xff, v & 0xff);
	is_str(text, moeep_version_string(), "number and text agree");
	ok(moeep_version_string() == moeep_version_string(), "the text stays where it is");
	return tap_done();
}
