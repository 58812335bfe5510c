/* What differs from bundle to bundle; the definitions are written when a bundle is. */
#ifndef BIGNAS_SETTINGS_H
#define BIGNAS_SETTINGS_H

extern const char *const settings_device;    /* name of the device the bundle is made for */
extern const char *const settings_processor; /* LLVM's name of its processor */
extern const int settings_threads;
extern const char *const settings_features[]; /* LLVM's names, ended by NULL */
extern const double settings_tolerance;       /* of the largest golden output, at least of 1 */

#endif
