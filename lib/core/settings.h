/* SPDX-License-Identifier: MIT */
/* core/settings.h - the one place that reads the environment. */
#ifndef MOEEP_CORE_SETTINGS_H
#define MOEEP_CORE_SETTINGS_H

#include <moeep/moeep.h>

/* spin_us: chosen by whoever knows how many ranks share the processors. */
#define MOEEP_SPIN_AUTO UINT32_MAX

enum moeep_hybrid { MOEEP_HYBRID_AUTO = 0, MOEEP_HYBRID_OFF = 1 };

/* How ranks of different hosts reach each other. */
enum moeep_network { MOEEP_NETWORK_AUTO = 0, MOEEP_NETWORK_VERBS = 1, MOEEP_NETWORK_EMULATED = 2 };

struct moeep_settings {
	uint32_t timeout_ms; /* MOEEP_TIMEOUT, ms; 0 in the variable means none (MOEEP_TIMEOUT_NONE
				here) */
	uint32_t spin_us;    /* MOEEP_SPIN, us that a wait spins before it sleeps; default
				MOEEP_SPIN_AUTO */
	int log_level;	     /* MOEEP_LOG: none, error, warn (default), info, debug */
	int backend;	     /* MOEEP_BACKEND: auto, host, cuda */
	uint64_t ht_chunk_bytes; /* MOEEP_HT_CHUNK_BYTES, 0: the config's */
	int ht_chunks;		 /* MOEEP_HT_CHUNKS, 0: the config's */
	char host_id[64];	 /* MOEEP_HOST_ID, "": found out */
	char interface[64];	 /* MOEEP_INTERFACE, "": loopback */
	char cuda_driver[128];	 /* MOEEP_CUDA_DRIVER, file name or path */
	int cuda_pdl;		 /* MOEEP_CUDA_PDL: 1 (default) or 0 */
	int hybrid;		 /* MOEEP_HYBRID: auto (default) or off */
	int transport;		 /* MOEEP_TRANSPORT: auto, verbs or emulated */
	int num_proxies;	 /* MOEEP_NUM_PROXIES, 0: by the number of nodes */
	char emulated_nic[128];	 /* MOEEP_EMULATED_NIC, see net/emulated.c */
	char id[320];		 /* MOEEP_ID, "": none */
	char id_file[128];	 /* MOEEP_ID_FILE, "": none */
	char site_file[128];	 /* MOEEP_SITE_FILE, "none": none */
	char log_file[128];	 /* MOEEP_LOG_FILE, "": none */
	uint8_t sources[18];	 /* moeep_setting_source_t of each, numbered as in
				    moeep_setting_query() */
};

/* Defaults, then the site's file, the config's fields (may be NULL), and the environment. A bad
 * value is MOEEP_ERR_INVALID and names the variable. */
int moeep_settings_load(const moeep_comm_config_t *config, struct moeep_settings *settings);

#endif
