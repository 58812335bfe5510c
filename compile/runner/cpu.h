/* Which instructions this processor has. */
#ifndef BIGNAS_CPU_H
#define BIGNAS_CPU_H

/* Returns the first of the features (LLVM's names, ended by NULL) that this processor or its
 * operating system lacks, or NULL when all are there. An unknown name counts as lacking. */
const char *cpu_lacks(const char *const *features);

#endif
