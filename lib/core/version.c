/* SPDX-License-Identifier: MIT */
/* The version that a program runs with; the headers tell the one it was compiled against. */
#include <moeep/base.h>

uint32_t moeep_version(void)
{
	return MOEEP_VERSION_NUMBER;
}

const char *moeep_version_string(void)
{
	return MOEEP_VERSION_STRING;
}
