/* SPDX-License-Identifier: MIT */
/* moeep/moeep.h - everything that an engine needs. See moeep(7) for the way through it. */
#ifndef MOEEP_MOEEP_H
#define MOEEP_MOEEP_H

#include <moeep/base.h>
#include <moeep/comm.h>
#include <moeep/buffer.h>
#include <moeep/ht.h>
#include <moeep/ll.h>

#endif
