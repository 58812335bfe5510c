/* An application with a network of bignas in it: names the class of every image in a file.
 *
 *     classify IMAGES.bin      raw float32 images, preprocessed as manifest.json of the bundle says
 *
 * Two things are asked of the caller: memory for the activations, aligned to 64 bytes, and one such
 * memory for each thread that calls bignas_run at the same time.
 */
#include <bignas.h>
#include <stdio.h>
#include <stdlib.h>

static size_t best_of(const float *scores, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++) {
        if (scores[i] > scores[best]) best = i;
    }
    return best;
}

static void *workspace(void) {
    size_t bytes = bignas_workspace_bytes();
    size_t rounded = (bytes + BIGNAS_ALIGNMENT - 1) / BIGNAS_ALIGNMENT * BIGNAS_ALIGNMENT;
    return aligned_alloc(BIGNAS_ALIGNMENT, rounded);
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: classify IMAGES.bin\n");
        return 2;
    }
    if (bignas_abi() != BIGNAS_ABI) {
        fprintf(stderr, "error: the library has another interface than the header\n");
        return 2;
    }
    FILE *file = fopen(arguments[1], "rb");
    if (!file) {
        perror(arguments[1]);
        return 2;
    }
    size_t inputs = bignas_input_floats(), outputs = bignas_output_floats();
    float *image = malloc(inputs * sizeof *image);
    float *scores = malloc(outputs * sizeof *scores);
    void *memory = workspace();
    if (!image || !scores || !memory) {
        fprintf(stderr, "error: not enough memory\n");
        return 1;
    }
    for (size_t number = 0; fread(image, sizeof *image, inputs, file) == inputs; number++) {
        if (bignas_run(image, scores, memory)) return 1;
        size_t best = best_of(scores, outputs);
        printf("image %zu: class %zu, score %.4f\n", number, best, scores[best]);
    }
    free(memory);
    free(scores);
    free(image);
    fclose(file);
    return 0;
}
