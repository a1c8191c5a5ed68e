/* SPDX-License-Identifier: MIT */
/* tools/moeep-info.c - what this build of the library contains, and what this host offers it. */
#include <config.h>

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moeep/moeep.h>

#include "info_check.h"
#include "info_gather.h"
#include "info_gpus.h"
#include "info_hints.h"
#include "info_host.h"
#include "info_machine.h"
#include "info_nics.h"
#include "info_reach.h"
#include "output.h"

#define EXIT_USAGE    2
#define EXIT_FINDINGS 3

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
	"      --check            what is in moeep's way on this machine, a line each: what is\n"
	"                         wrong, why it matters, what mends it; exit status 3 if there\n"
	"                         is any\n"
	"      --record=FILE      write what was found out of the machine to FILE, - for the\n"
	"                         output\n"
	"      --input=FILE       look at a record in place of this machine\n"
	"      --json             everything, as one JSON document\n"
	"  -h, --help             this text\n"
	"  -V, --version          the version\n"
	"\n"
	"Without --settings, --hints, --check, --record and --json: version, features, host,\n"
	"GPUs, RDMA devices, their distances, settings, hints; with --input what is in the "
	"record.\n"
	"\n"
	"Exit status: 0 done; 1 something could not be found out or written; 2 usage; 3 findings\n"
	"of --check.\n";

/* What is known of a machine. */
struct report {
	bool here; /* this one: build, settings and hints matter */
	struct machine machine;
	struct info_gpus gpus;
	struct info_nics nics;
	struct info_reach reach;
	struct info_findings findings;
	struct info_hints hints;
};

/* What was asked for. */
struct request {
	bool settings;
	bool hints;
	bool json;
	bool check;
	const char *record;
	const char *input;
};

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

static void print_json(const struct report *report)
{
	struct json json;

	json_start(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "program", "moeep-info");
	json_string(&json, "version", MOEEP_VERSION_STRING);
	json_string(&json, "library_version", moeep_version_string());
	if (report->here) {
		json_features(&json);
	}
	info_host_json(&json, &report->machine);
	info_gpus_json(&json, &report->gpus);
	info_nics_json(&json, &report->nics);
	info_reach_json(&json, &report->reach, &report->gpus);
	info_check_json(&json, &report->findings);
	if (report->here) {
		json_settings(&json);
		info_hints_json(&json, &report->hints);
	}
	json_close(&json);
}

static void print_report(const struct report *report, const struct request *request)
{
	bool all = !request->settings && !request->hints;

	printf("moeep-info %s, library %s\n", MOEEP_VERSION_STRING, moeep_version_string());
	if (all && report->here) {
		text_features();
	}
	if (all) {
		info_host_text(&report->machine);
		info_gpus_text(&report->gpus, report->here);
		info_nics_text(&report->nics);
		info_reach_text(&report->reach, &report->gpus);
	}
	if (report->here && (all || request->settings)) {
		text_settings();
	}
	if (report->here && (all || request->hints)) {
		info_hints_text(&report->hints);
	}
}

/* 0, or -1 with a message. */
static int look(struct report *report, const struct request *request)
{
	if (request->input) {
		if (machine_load(&report->machine, request->input)) {
			return -1;
		}
	} else {
		info_gather(&report->machine);
		info_gpus_look(&report->machine);
		(void)machine_sort(&report->machine);
	}
	if (report->machine.failed) {
		fputs("moeep-info: no memory\n", stderr);
		return -1;
	}
	info_gpus_take(&report->machine, &report->gpus);
	info_nics_take(&report->machine, &report->nics);
	info_reach_take(&report->machine, &report->gpus, &report->nics, &report->reach);
	info_check_machine(&report->machine, &report->gpus, &report->nics, &report->reach,
			   &report->findings);
	if (report->here) {
		info_check_here(&report->reach, &report->findings);
	}
	return 0;
}

/* Returns the exit status. */
static int answer(struct report *report, const struct request *request)
{
	bool report_wanted = !request->check && !request->record;
	/* Who asks for settings or hints alone need not wait for a driver. */
	bool alone = report_wanted && !request->json && !request->input &&
		     (request->settings || request->hints);

	report->here = !request->input;
	if (!alone && look(report, request)) {
		return EXIT_FAILURE;
	}
	if (report->here &&
	    (request->json || (report_wanted && !request->settings) || request->hints)) {
		info_hints_ask(&report->hints);
	}
	if (request->record && machine_save(&report->machine, request->record)) {
		return EXIT_FAILURE;
	}
	if (request->json) {
		print_json(report);
	} else if (request->check) {
		info_check_text(&report->findings);
	} else if (report_wanted) {
		print_report(report, request);
	}
	if (output_finish(stdout, "moeep-info")) {
		return EXIT_FAILURE;
	}
	if (request->check && report->findings.count > 0) {
		return EXIT_FINDINGS;
	}
	return report->hints.result ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* Values that one excludes. 0, or -1 with a message. */
static int check_request(const struct request *request)
{
	const char *message = NULL;

	if (request->input && (request->settings || request->hints)) {
		message = "--settings and --hints are of this build, --input is of another machine";
	} else if (request->check && (request->settings || request->hints)) {
		message = "--check goes with neither --settings nor --hints";
	} else if (request->record && (request->settings || request->hints)) {
		message = "--record goes with neither --settings nor --hints";
	} else if (request->record && strcmp(request->record, "-") == 0 &&
		   (request->json || request->check)) {
		message = "--record=- is alone on the output";
	} else if (request->record && request->input) {
		message = "--record and --input exclude each other";
	}
	if (message) {
		fprintf(stderr, "moeep-info: %s\n", message);
		return -1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	enum { OPT_SETTINGS = 256, OPT_HINTS, OPT_JSON, OPT_CHECK, OPT_RECORD, OPT_INPUT };
	static const struct option options[] = {
		{"settings", no_argument, NULL, OPT_SETTINGS},
		{"hints", optional_argument, NULL, OPT_HINTS},
		{"json", no_argument, NULL, OPT_JSON},
		{"check", no_argument, NULL, OPT_CHECK},
		{"record", required_argument, NULL, OPT_RECORD},
		{"input", required_argument, NULL, OPT_INPUT},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{NULL, 0, NULL, 0},
	};
	static char program[] = "moeep-info";
	/* Too large for a stack. */
	static struct report report = {
		.hints = {.ranks = 8,
			  .hidden = 7168,
			  .experts = 256,
			  .topk = 8,
			  .ht_tokens = 4096,
			  .ll_tokens = 128,
			  .dtype = MOEEP_BF16},
	};
	struct request request = {0};
	int status;
	int id;

	/* getopt_long() puts it before its messages. */
	argv[0] = program;
	while ((id = getopt_long(argc, argv, "hV", options, NULL)) != -1) {
		switch (id) {
		case OPT_SETTINGS:
			request.settings = true;
			break;
		case OPT_HINTS:
			request.hints = true;
			/* Also "--hints LIST", as an argument of its own. */
			if (!optarg && optind < argc && strchr(argv[optind], '=')) {
				optarg = argv[optind++];
			}
			if (optarg && info_hints_read(&report.hints, optarg)) {
				goto err_usage;
			}
			break;
		case OPT_JSON:
			request.json = true;
			break;
		case OPT_CHECK:
			request.check = true;
			break;
		case OPT_RECORD:
			request.record = optarg;
			break;
		case OPT_INPUT:
			request.input = optarg;
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
	if (check_request(&request)) {
		goto err_usage;
	}
	status = answer(&report, &request);
	machine_free(&report.machine);
	return status;

err_usage:
	fputs("Try \"moeep-info --help\".\n", stderr);
	return EXIT_USAGE;
}
