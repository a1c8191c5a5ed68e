/* SPDX-License-Identifier: MIT */
/* tools/moeep-info.c - what this build of the library contains, and what this host offers it. */
#include <config.h>

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moeep/moeep.h>

#include "info_gpus.h"
#include "info_hints.h"
#include "info_host.h"
#include "output.h"

#define EXIT_USAGE 2

static const char help_text[] =
	"Usage: moeep-info [OPTION]...\n"
	"Say what this build of moeep contains and why it lacks the rest, and what this host "
	"offers.\n"
	"\n"
	"      --settings         the environment variables that the library reads: value in "
	"force,\n"
	"                         source, default, meaning\n"
	"      --hints[=LIST]     memory that a configuration takes on each rank; LIST of\n"
	"                         ranks=N, hidden=N, experts=N, topk=N, ht-tokens=N, ll-tokens=N,\n"
	"                         dtype=T, separated by commas\n"
	"                         [ranks=8,hidden=7168,experts=256,topk=8,ht-tokens=4096,\n"
	"                         ll-tokens=128,dtype=bf16]\n"
	"      --json             everything, as one JSON document\n"
	"  -h, --help             this text\n"
	"  -V, --version          the version\n"
	"\n"
	"Without --settings, --hints and --json: version, features, host, GPUs, and both of\n"
	"these.\n"
	"\n"
	"Exit status: 0 done; 1 something could not be found out or written; 2 usage.\n";

static void text_features(void)
{
	moeep_feature_info_t info = {.size = sizeof(info)};

	printf("\nFeatures of this build\n");
	for (unsigned i = 0; moeep_feature_query(i, &info) == 0; i++) {
		printf("  %-16s%-4s %s\n", info.name, info.enabled ? "yes" : "no", info.reason);
	}
}

static const char *source_name(int source)
{
	return source == MOEEP_SOURCE_ENVIRONMENT ? "environment"
	       : source == MOEEP_SOURCE_CONFIG	  ? "config"
	       : source == MOEEP_SOURCE_SITE	  ? "site"
						  : "default";
}

static void text_settings(void)
{
	moeep_setting_info_t info = {.size = sizeof(info)};

	printf("\nSettings (environment variables)\n");
	for (unsigned i = 0; moeep_setting_query(NULL, i, &info) == 0; i++) {
		printf("  %-22s", info.name);
		print_text(stdout, info.value[0] ? info.value : "(empty)");
		printf("%s%s, from the %s (default %s)\n", info.unit[0] ? " " : "", info.unit,
		       source_name(info.source),
		       info.default_value[0] ? info.default_value : "empty");
		printf("  %-22s%s\n", "", info.description);
	}
}

static void json_features(struct json *json)
{
	moeep_feature_info_t info = {.size = sizeof(info)};

	json_array(json, "features");
	for (unsigned i = 0; moeep_feature_query(i, &info) == 0; i++) {
		json_object(json, NULL);
		json_string(json, "name", info.name);
		json_bool(json, "enabled", info.enabled != 0);
		json_string(json, "reason", info.reason);
		json_close(json);
	}
	json_close(json);
}

static void json_settings(struct json *json)
{
	moeep_setting_info_t info = {.size = sizeof(info)};

	json_array(json, "settings");
	for (unsigned i = 0; moeep_setting_query(NULL, i, &info) == 0; i++) {
		json_object(json, NULL);
		json_string(json, "name", info.name);
		json_string(json, "value", info.value);
		json_string(json, "unit", info.unit);
		json_string(json, "source", source_name(info.source));
		json_string(json, "default", info.default_value);
		json_string(json, "description", info.description);
		json_close(json);
	}
	json_close(json);
}

static void print_json(const struct info_host *host, const struct info_gpus *gpus,
		       const struct info_hints *hints)
{
	struct json json;

	json_start(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "program", "moeep-info");
	json_string(&json, "version", MOEEP_VERSION_STRING);
	json_string(&json, "library_version", moeep_version_string());
	json_features(&json);
	info_host_json(&json, host);
	info_gpus_json(&json, gpus);
	json_settings(&json);
	info_hints_json(&json, hints);
	json_close(&json);
}

static void print_report(const struct info_host *host, const struct info_gpus *gpus,
			 const struct info_hints *hints, bool settings, bool hint_table)
{
	bool all = !settings && !hint_table;

	printf("moeep-info %s, library %s\n", MOEEP_VERSION_STRING, moeep_version_string());
	if (all) {
		text_features();
		info_host_text(host);
		info_gpus_text(gpus);
	}
	if (all || settings) {
		text_settings();
	}
	if (all || hint_table) {
		info_hints_text(hints);
	}
}

int main(int argc, char **argv)
{
	enum { OPT_SETTINGS = 256, OPT_HINTS, OPT_JSON };
	static const struct option options[] = {
		{"settings", no_argument, NULL, OPT_SETTINGS},
		{"hints", optional_argument, NULL, OPT_HINTS},
		{"json", no_argument, NULL, OPT_JSON},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{NULL, 0, NULL, 0},
	};
	static char program[] = "moeep-info";
	struct info_hints hints = {.ranks = 8,
				   .hidden = 7168,
				   .experts = 256,
				   .topk = 8,
				   .ht_tokens = 4096,
				   .ll_tokens = 128,
				   .dtype = MOEEP_BF16};
	bool settings = false, hint_table = false, json = false;
	struct info_host host;
	struct info_gpus gpus;
	int id;

	/* getopt_long() puts it before its messages. */
	argv[0] = program;
	while ((id = getopt_long(argc, argv, "hV", options, NULL)) != -1) {
		switch (id) {
		case OPT_SETTINGS:
			settings = true;
			break;
		case OPT_HINTS:
			hint_table = true;
			/* Also "--hints LIST", as an argument of its own. */
			if (!optarg && optind < argc && strchr(argv[optind], '=')) {
				optarg = argv[optind++];
			}
			if (optarg && info_hints_read(&hints, optarg)) {
				goto err_usage;
			}
			break;
		case OPT_JSON:
			json = true;
			break;
		case 'h':
			fputs(help_text, stdout);
			return output_finish(stdout, "moeep-info") ? EXIT_FAILURE : EXIT_SUCCESS;
		case 'V':
			printf("moeep-info %s\n", moeep_version_string());
			return output_finish(stdout, "moeep-info") ? EXIT_FAILURE : EXIT_SUCCESS;
		default:
			goto err_usage;
		}
	}
	if (optind < argc) {
		fputs("moeep-info: unexpected argument \"", stderr);
		print_text(stderr, argv[optind]);
		fputs("\"\n", stderr);
		goto err_usage;
	}
	if (info_host_look(&host)) {
		return EXIT_FAILURE;
	}
	if (json || hint_table || !settings) {
		info_hints_ask(&hints);
	}
	if (json) {
		info_gpus_look(&gpus);
		print_json(&host, &gpus, &hints);
	} else {
		if (!settings && !hint_table) {
			info_gpus_look(&gpus);
		}
		print_report(&host, &gpus, &hints, settings, hint_table);
	}
	if (output_finish(stdout, "moeep-info")) {
		return EXIT_FAILURE;
	}
	return hints.result ? EXIT_FAILURE : EXIT_SUCCESS;

err_usage:
	fputs("Try \"moeep-info --help\".\n", stderr);
	return EXIT_USAGE;
}
