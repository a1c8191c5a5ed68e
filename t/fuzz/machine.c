/* SPDX-License-Identifier: MIT */
/* Fuzz target: records of machines, and what moeep-info makes of them. */
#include "config.h"

#include <stdlib.h>

#include "t/fuzz/fuzz.h"
#include "tools/info_check.h"
#include "tools/info_host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct info_gpus gpus;
	static struct info_nics nics;
	static struct info_reach reach;
	static struct info_findings findings;
	static FILE *nowhere;
	struct machine machine = {0};
	struct json json;
	char error[700];

	if (!nowhere) {
		nowhere = fopen("/dev/null", "we");
		if (!nowhere) {
			abort();
		}
	}
	if (machine_parse(&machine, (const char *)data, size, error, sizeof(error))) {
		/* Whoever is refused is told why. */
		if (!error[0]) {
			abort();
		}
	} else {
		info_gpus_take(&machine, &gpus);
		info_nics_take(&machine, &nics);
		info_reach_take(&machine, &gpus, &nics, &reach);
		findings.count = 0;
		info_check_machine(&machine, &gpus, &nics, &reach, &findings);
		json_start(&json, nowhere);
		json_object(&json, NULL);
		info_host_json(&json, &machine);
		info_gpus_json(&json, &gpus);
		info_nics_json(&json, &nics);
		info_reach_json(&json, &reach, &gpus);
		info_check_json(&json, &findings);
		json_close(&json);
	}
	machine_free(&machine);
	return 0;
}
