// @load-error default
export const handler = () => 1;
