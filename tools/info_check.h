/* SPDX-License-Identifier: MIT */
/* tools/info_check.h - moeep-info --check: what of a machine is in the library's way. */
#ifndef MOEEP_TOOLS_INFO_CHECK_H
#define MOEEP_TOOLS_INFO_CHECK_H

#include "info_machine.h"
#include "info_reach.h"

#define INFO_MAX_FINDINGS 256

enum info_level {
	INFO_WARNING, /* it costs time, or part of the machine is not used */
	INFO_ERROR    /* something that the machine is for does not work */
};

struct info_finding {
	enum info_level level;
	char what[360];
	char why[160];
	char mend[240]; /* a command, or what else to do */
};

struct info_findings {
	int count;
	struct info_finding finding[INFO_MAX_FINDINGS];
};

/* Past INFO_MAX_FINDINGS they are left out. */
void info_found(struct info_findings *findings, enum info_level level, const char *why,
		const char *mend, const char *what, ...) __attribute__((format(printf, 5, 6)));

/* What can be seen of a record too. */
void info_check_machine(const struct machine *machine, const struct info_gpus *gpus,
			const struct info_nics *nics, const struct info_reach *reach,
			struct info_findings *findings);

/* Parts of it. Of a device by its name, and what fewer lanes mean for: */
void info_check_lanes(const char *name, const struct pci_device *pci, const char *why,
		      struct info_findings *findings);
void info_check_nics(const struct machine *machine, const struct info_nics *nics,
		     struct info_findings *findings);

/* This build and its settings. */
void info_check_here(const struct info_reach *reach, struct info_findings *findings);

/* A line each. */
void info_check_text(const struct info_findings *findings);
void info_check_json(struct json *json, const struct info_findings *findings);

#endif
